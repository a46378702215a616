"""Methods that act between encoder and decoder, against slow fp64 references (N <= 64)."""

from __future__ import annotations

import math

import pytest
import torch

from mmtok import InputError
from mmtok.models.families import cells
from mmtok.pruning import FPS, CDPruner, Grid, Pool, PruMerge, Query, QuoTA, VisualTokens
from mmtok.pruning.blocks import columns_per_band, pooled
from tests.test_methods import SEEDS, best, cosine, make, mean, rows


def query(seed: int, words: int = 5, width: int = 7) -> Query:
    generator = torch.Generator().manual_seed(seed + 50)
    x = torch.randn(1, 5, width, generator=generator)
    return Query(embeddings=x, mask=torch.arange(5)[None] < words)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("theta", [None, 0.7])
def test_cdpruner(seed: int, theta: float | None) -> None:
    """Each step takes the token with the largest determinant of the kernel of the chosen ones."""
    tokens, asked = make(seed, 30), query(seed)
    x, text = rows(tokens), asked.embeddings[0].double().tolist()
    cosines = [sum(cosine(v, t) for t in text) / 5 for v in x]
    low, high = min(cosines), max(cosines)
    r = [(c - low + 1e-6) / (high - low) for c in cosines]
    if theta is not None:
        r = [math.exp(theta / (2 * (1 - theta)) * value) for value in r]
    kernel = torch.tensor(
        [[r[i] * cosine(x[i], x[j]) * r[j] for j in range(30)] for i in range(30)]
    )
    kernel = kernel.double()
    chosen: list[int] = []
    while len(chosen) < 6:
        volume = {
            i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))
            for i in range(30)
            if i not in chosen
        }
        chosen.append(max(volume, key=volume.__getitem__))
    got = CDPruner(keep=6, theta=theta).select(tokens, asked).indices[0]
    assert got.tolist() == sorted(chosen)


def test_cdpruner_beyond_the_rank_and_without_text() -> None:
    """Seven dimensions: the eighth token and later ones are the most relevant of the rest."""
    tokens, asked = make(0, 40), query(0)
    reducer = CDPruner(keep=20)
    wide, narrow = (CDPruner(keep=k).select(tokens, asked).indices[0].tolist() for k in (20, 7))
    assert set(narrow) < set(wide)
    r = reducer.relevance(asked.embeddings[0], tokens.features[0]).tolist()
    rest = [i for i in best(r, 40) if i not in narrow]
    assert sorted([*narrow, *rest[:13]]) == wide
    assert len(CDPruner(keep=5).select(tokens, query(0, words=0)).indices[0]) == 5
    none = torch.zeros(0, 7)
    assert reducer.relevance(none, tokens.features[0]).tolist() == [1.0] * 40


def share(weights: list[float]) -> list[float]:
    return [w / math.fsum(weights) for w in weights]


def weighted(weights: list[float], vectors: list[list[float]]) -> list[float]:
    return [
        math.fsum(w * v[c] for w, v in zip(weights, vectors, strict=True))
        for c in range(len(vectors[0]))
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("compat", ["paper", "repo"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_prumerge(seed: int, compat: str, adaptive: bool) -> None:
    tokens = make(seed)
    assert tokens.cls_attention is not None
    assert tokens.keys is not None
    attention = (tokens.cls_attention[0] ** 6).double()
    tokens = VisualTokens(
        features=tokens.features, keys=tokens.keys, cls_attention=attention[None].float()
    )
    c, keys, x = attention.float().tolist(), tokens.keys[0].double().tolist(), rows(tokens)
    count = 9
    if adaptive:
        ranked = sorted(c)

        def quantile(q: float) -> float:
            at = q * 47
            low = math.floor(at)
            return ranked[low] + (at - low) * (ranked[low + 1] - ranked[low])

        limit = quantile(0.75) + 1.5 * (quantile(0.75) - quantile(0.25))
        count = max(sum(value > limit for value in c), 1)
    selected = best(c, count)
    others = [i for i in range(48) if i not in selected]
    want = {}
    for i in selected:
        near = best([cosine(keys[i], keys[j]) if j != i else -2.0 for j in range(48)], 5)
        weights = [1.0, *(c[j] for j in near)]
        want[i] = weighted(
            weights if compat == "repo" else share(weights), [x[j] for j in [i, *near]]
        )
    weights = [c[j] for j in others]
    want[max(others, key=c.__getitem__)] = weighted(
        weights if compat == "repo" else share(weights), [x[j] for j in others]
    )
    reducer = PruMerge(
        keep=30 if adaptive else 10,
        adaptive=adaptive,
        neighbours=5,
        compat=compat,  # type: ignore[arg-type]
    )
    chosen = reducer.select(tokens)
    assert chosen.indices[0].tolist() == sorted(want)
    merged = torch.tensor([want[i] for i in sorted(want)])
    torch.testing.assert_close(chosen.apply(tokens.features)[0], merged.float())


def test_prumerge_plus_spreads_and_the_cap_holds() -> None:
    tokens = make(1)
    assert tokens.cls_attention is not None
    top = best(tokens.cls_attention[0].tolist(), 3)
    rest = [i for i in range(48) if i not in top]
    evenly = [rest[(2 * j + 1) * 45 // 16] for j in range(8)]
    chosen, extra = PruMerge(keep=12, plus=True).selected(tokens.cls_attention[0], 12)
    assert chosen.tolist() == sorted(top + evenly)
    left = [i for i in range(48) if i not in (*top, *evenly)]
    assert extra.tolist() == [max(left, key=tokens.cls_attention[0].tolist().__getitem__)]
    capped = PruMerge(keep=4, adaptive=True, plus=True).select(tokens)
    assert len(capped.indices[0]) == 4
    assert PruMerge(adaptive=True).budget == "threshold"
    assert PruMerge().budget == "exact"


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


def anyres() -> VisualTokens:
    """An overview of 3 x 3, and a picture of 4 x 2 whose rows end in a newline token."""
    detail = cells(1, 4, 3)
    detail[:, 0] = 1
    position = torch.cat([cells(1, 3, 3), detail])[None]
    x = torch.randn(1, 21, 4, generator=torch.Generator().manual_seed(0))
    attention = torch.rand(1, 21, generator=torch.Generator().manual_seed(1))
    return VisualTokens(
        features=x,
        position=position,
        grid=torch.tensor([[2, 4, 2]]),
        overview=torch.arange(21)[None] < 9,
        cls_attention=attention,
        keys=x,
    )


@pytest.mark.parametrize("reducer", [Pool, Grid, QuoTA])
def test_newline_tokens_leave_first(reducer: type) -> None:
    tokens, asked = anyres(), query(0, width=4)
    newline = {11, 14, 17, 20}
    most = reducer(keep=17).select(tokens, asked).indices[0].tolist()
    assert set(most) == set(range(21)) - newline
    assert reducer(keep=19).select(tokens, asked).indices[0].tolist() == sorted([*most, 11, 14])
    assert not newline & set(reducer(keep=10).select(tokens, asked).indices[0].tolist())


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
    with pytest.raises(InputError, match="3 scores for a clip of 4 frames"):
        counts([1.0, 0.5, 0.2], 10)
    with pytest.raises(InputError, match="needs a query"):
        QuoTA(keep=3).select(tokens)
