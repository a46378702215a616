"""Blocks of cells, the baselines made of them, and budgets per frame."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmtok import InputError
from mmtok.models.families import cells
from mmtok.pruning import FPS, Grid, Pool, QuoTA, VisualTokens, build
from mmtok.pruning.blocks import columns_per_band, pooled, resized
from mmtok.pruning.rank import apportion, with_least
from tests.test_image_methods import anyres, query
from tests.test_methods import SEEDS, best, cosine, mean, rows


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (6, 4), (5, 9), (14, 3)])
def test_blocks_tile_the_grid_for_every_number(h: int, w: int) -> None:
    for k in range(1, h * w + 1):
        columns = columns_per_band(h, w, k)
        assert sum(columns) == k
        assert len(columns) <= h
        assert max(columns) <= w
        assert max(columns) - min(columns) <= 1
        centre, (source, slot, weight) = pooled(h, w, columns)
        assert (centre[1:] > centre[:-1]).all()
        assert source.unique().numel() == h * w
        torch.testing.assert_close(torch.zeros(k).index_add_(0, slot, weight), torch.ones(k))
        assert all(centre[s] in source[slot == s] for s in range(k))
    whole = pooled(h, w, columns_per_band(h, w, h * w))
    assert torch.equal(whole[0], torch.arange(h * w))


def test_pool_is_adaptive_average_pooling_where_rows_and_columns_divide() -> None:
    x = torch.randn(2, 6, 9, 5, generator=torch.Generator().manual_seed(0))
    tokens = VisualTokens(
        features=x.view(1, -1, 5), position=cells(2, 6, 9)[None], grid=torch.tensor([[2, 6, 9]])
    )
    chosen = Pool(keep=24).select(tokens)  # 12 of each frame: 3 bands of 4
    want = torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (3, 4))
    torch.testing.assert_close(chosen.apply(tokens.features)[0], want.flatten(2).mT.flatten(0, 1))
    assert torch.equal(Grid(keep=24).select(tokens).indices[0], chosen.indices[0])
    assert chosen.indices[0][:4].tolist() == [10, 12, 14, 16]


@pytest.mark.parametrize("reducer", [Pool, Grid, QuoTA])
def test_newline_tokens_leave_first(reducer: type) -> None:
    tokens, asked = anyres(), query(0, width=4)
    newline = {11, 14, 17, 20}
    most = reducer(keep=17).select(tokens, asked).indices[0].tolist()
    assert set(most) == set(range(21)) - newline
    assert reducer(keep=19).select(tokens, asked).indices[0].tolist() == sorted([*most, 11, 14])
    assert not newline & set(reducer(keep=10).select(tokens, asked).indices[0].tolist())


@pytest.mark.parametrize("reducer", [Pool, Grid, QuoTA])
def test_newline_tokens_alone_and_padding_on_the_left(reducer: type) -> None:
    lines = VisualTokens(
        features=torch.randn(1, 3, 4),
        position=torch.tensor([[[0, 0, 2], [0, 1, 2], [0, 2, 2]]]),
        grid=torch.tensor([[1, 3, 2]]),
    )
    asked = query(0, width=4)
    assert len(reducer(keep=2).select(lines, asked).indices[0]) == 2
    x = torch.randn(1, 10, 4)
    plain = reducer(keep=4).select(VisualTokens(features=x[:, 3:]), asked).indices[0]
    padded = VisualTokens(features=x, mask=torch.arange(10)[None] >= 3)
    assert torch.equal(reducer(keep=4).select(padded, asked).indices[0] - 3, plain)


def test_fps_keeps_whole_frames() -> None:
    x = torch.randn(1, 48, 4)
    tokens = VisualTokens(features=x, position=cells(8, 2, 3)[None])
    assert FPS(keep=12).select(tokens).indices[0].tolist() == [*range(12, 18), *range(36, 42)]
    thinned = FPS(keep=14).select(tokens).indices[0]  # three frames of 6, thinned to 5, 5 and 4
    assert (thinned // 6).bincount(minlength=8).tolist() == [0, 5, 0, 0, 5, 0, 4, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_quota_scores_frames_by_their_mean(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 48, 7, generator=generator)
    tokens = VisualTokens(features=x, position=cells(4, 3, 4)[None], grid=torch.tensor([[4, 3, 4]]))
    asked = query(seed)
    text = asked.embeddings[0].double().tolist()
    frames = [mean(rows(tokens)[12 * t : 12 * t + 12]) for t in range(4)]
    like = [sum(cosine(frame, word) for word in text) / 5 for frame in frames]
    p = [0.5 + 0.5 * (v - min(like)) / (max(like) - min(like)) for v in like]
    portion = [22 * v**2 / sum(q**2 for q in p) for v in p]
    assert max(portion) < 12, "no frame is full"
    quota = [math.floor(v) for v in portion]
    for t in best([v - q for v, q in zip(portion, quota, strict=True)], 22 - sum(quota)):
        quota[t] += 1
    for compress in ("pool", "index"):
        got = QuoTA(keep=22, compress=compress).select(tokens, asked)  # type: ignore[arg-type]
        assert (got.indices[0] // 12).bincount(minlength=4).tolist() == quota
    want = [12 * t + j * 11 // max(q - 1, 1) for t, q in enumerate(quota) for j in range(q)]
    assert got.indices[0].tolist() == want


@pytest.mark.parametrize("seed", SEEDS)
def test_quota_minimum_is_exact_water_filling(seed: int) -> None:
    """Every count is lambda times the weight, between the minimum and the size, up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.rand(7, generator=generator) ** 3).tolist()
    caps = torch.randint(1, 12, (7,), generator=generator).tolist()
    for total in range(sum(caps) + 1):
        assert with_least(weights, caps, total, 0) == apportion(weights, caps, total)
        for least in range(1, 5):
            got = with_least(weights, caps, total, least)
            low = [min(least, total // 7, cap) for cap in caps]
            below, above = 0.0, 1e9
            for _ in range(200):  # halve the range of lambda
                level = (below + above) / 2
                wanted = [
                    min(max(level * w, a), b) for w, a, b in zip(weights, low, caps, strict=True)
                ]
                below, above = (level, above) if sum(wanted) < total else (below, level)
            assert sum(got) == total
            assert max(abs(n - v) for n, v in zip(got, wanted, strict=True)) <= 1 + 1e-6


def test_bilinear_resizing_is_that_of_torch() -> None:
    x = torch.randn(1, 5, 6, 9, generator=torch.Generator().manual_seed(0))
    for h in range(1, 7):
        for w in range(1, 10):
            centre, (source, slot, weight) = resized(6, 9, h, w)
            assert (centre[1:] > centre[:-1]).all()
            flat = torch.zeros(h * w, 5)
            got = flat.index_add_(0, slot, x[0].flatten(1).T[source] * weight[:, None])
            want = torch.nn.functional.interpolate(x, (h, w), mode="bilinear")
            torch.testing.assert_close(got, want[0].flatten(1).T)


def test_quota_takes_a_function_and_a_minimum() -> None:
    x = torch.randn(1, 48, 4)
    tokens = VisualTokens(features=x, position=cells(4, 3, 4)[None], grid=torch.tensor([[4, 3, 4]]))

    def second(frames: list[torch.Tensor], text: torch.Tensor) -> list[float]:
        assert [tuple(f.shape) for f in frames] == [(12, 4)] * 4
        assert torch.equal(frames[1], x[0, 12:24])
        return [0.0, 1.0, 0.0, float(len(text) == 0)]

    def counts(**options: Any) -> list[int]:
        return (
            (QuoTA(scorer=second, **options).select(tokens, query(0, width=4)).indices[0] // 12)
            .bincount(minlength=4)
            .tolist()
        )

    assert counts(keep=10) == [0, 10, 0, 0]
    assert counts(keep=10, least=2) == [2, 4, 2, 2]
    assert counts(keep=10, least=99) == [2, 4, 2, 2]
    assert counts(keep=10, compat="repo") == [0, 9, 0, 0]  # 3 x 3
    with pytest.raises(InputError, match="scores must be finite numbers"):
        QuoTA(keep=9, scorer=lambda frames, text: [2.0] * 4).select(tokens)
    for options in ({"compress": "bilinear"}, {"least": 1, "compat": "repo"}):
        with pytest.raises(InputError, match="goes with compat='repo'"):
            QuoTA(**options)


def test_quota_takes_given_scores() -> None:
    x = torch.randn(1, 48, 4)
    tokens = VisualTokens(features=x, position=cells(4, 3, 4)[None], grid=torch.tensor([[4, 3, 4]]))

    def counts(scores: list[float], k: int) -> list[int]:
        got = QuoTA(keep=k, scorer=scores).select(tokens)  # type: ignore[arg-type]
        return (got.indices[0] // 12).bincount(minlength=4).tolist()

    assert counts([1.0, 0.5, 0.0, 0.0], 10) == [8, 2, 0, 0]
    assert counts([1.0, 0.5, 0.0, 0.0], 20) == [12, 8, 0, 0]  # 16 : 4, and no frame above 12
    assert counts([1.0, 0.0, 0.0, 0.0], 20) == [12, 3, 3, 2]
    assert counts([0, 0, 0, 0], 10) == [3, 3, 2, 2]
    given = QuoTA(scorer=[1, 0.5])  # type: ignore[arg-type]
    assert build(given.spec) == [given]
    with pytest.raises(InputError, match="3 scores for a clip of 4 frames"):
        counts([1.0, 0.5, 0.2], 10)
    with pytest.raises(InputError, match="needs a query"):
        QuoTA(keep=3).select(tokens)
