"""Every rule inside the decoder against a slow fp64 reference written from its definition alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mmtok import InputError
from mmtok.models.taps import LayerAttention
from mmtok.pruning import DART, FastV, FrameFusion, PyramidDrop, SparseVLM
from mmtok.pruning.decoder import DecoderPrompt, stage_layers, tapered
from mmtok.pruning.dpc import density_peaks
from mmtok.pruning.methods.framefusion import tokens_to_keep
from mmtok.pruning.methods.sparsevlm import split_budget
from tests.test_methods import cosine, dot

SEEDS = range(4)
LENGTH, START = 60, 6


def prompt(seed: int, n: int = 40, **facts: Any) -> DecoderPrompt:
    """A random prompt of 60 tokens under a causal mask, n visual ones from place 6 on."""
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 2, 3, LENGTH, 4, generator=generator)
    seen = LayerAttention(query=query, key=key, mask=None, causal=True, scale=0.5)
    place = torch.arange(LENGTH)
    inside = (place >= START) & (place < START + n)
    order = torch.arange(n)
    values: dict[str, Any] = {
        "visual": place[inside],
        "text": place[~inside],
        "hidden": torch.randn(LENGTH, 8, generator=generator),
        "size": torch.ones(n),
        "cell": torch.stack([order * 0, order // 8, order % 8 // 4, order % 4], dim=1),
        "norm": lambda x: x,
        "attention": seen,
        "embeddings": torch.randn(LENGTH, 8, generator=generator),
        "item": 1,
    }
    return DecoderPrompt(**values | facts)


def row(seen: DecoderPrompt, place: int) -> list[float]:
    """One row of attention, mean over heads."""
    total = [0.0] * LENGTH
    heads = seen.attention.query[seen.item]  # type: ignore[union-attr]
    keys = seen.attention.key[seen.item]  # type: ignore[union-attr]
    for q, k in zip(heads.double(), keys.double(), strict=True):
        e = [math.exp(0.5 * dot(q[place].tolist(), k[j].tolist())) for j in range(place + 1)]
        total = [t + w / sum(e) for t, w in zip(total, e + [0.0] * LENGTH, strict=False)]
    return [t / len(heads) for t in total]


def best(score: list[float], k: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda i: -score[i])[:k])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("last", [59, 54])
def test_fastv(seed: int, last: int) -> None:
    """Also where the prompt is padded on the right: the last real token asks."""
    seen = prompt(seed)
    seen.text = seen.text[seen.text <= last]
    (stage,) = FastV(keep=0.3).in_decoder(8)
    assert stage.layer == 2
    want = best(row(seen, last)[START : START + 40], 12)
    assert stage.rule(seen).indices[0].tolist() == want
    (stage,) = FastV(keep=0.3, rows="all").in_decoder(8)
    asking = [*seen.visual.tolist(), *seen.text.tolist()]
    total = [sum(column) for column in zip(*(row(seen, place) for place in asking), strict=True)]
    assert stage.rule(seen).indices[0].tolist() == best(total[START : START + 40], 12)


def test_fastv_plans_and_refuses() -> None:
    assert FastV(keep=0.5).decoder_schedule(5, 9) == [9, 9, 5, 5, 5]
    assert FastV(keep=1.0).in_decoder(8) == []
    with pytest.raises(InputError, match="below 4"):
        FastV(layer=4).in_decoder(4)


@pytest.mark.parametrize("seed", SEEDS)
def test_pyramiddrop(seed: int) -> None:
    stages = PyramidDrop(keep=0.125).in_decoder(32)
    assert [stage.layer for stage in stages] == [8, 16, 24]
    seen = prompt(seed)
    for stage, k in zip(stages, [20, 10, 5], strict=True):
        assert stage.reads == {"own_attention"}
        want = best([row(seen, 59)[i] for i in seen.visual], k)
        got = stage.rule(seen).indices[0]
        assert got.tolist() == want
        seen.visual = seen.visual[got]


def test_stages_in_decoders_of_any_depth() -> None:
    assert (
        PyramidDrop(keep=0.125).decoder_schedule(8, 576)
        == [576] * 2 + [288] * 2 + [144] * 2 + [72] * 2
    )
    assert PyramidDrop(keep=3, layers=(1, 3)).decoder_schedule(5, 12) == [12, 6, 6, 3, 3]
    assert [s.layer for s in SparseVLM(keep=9).in_decoder(32)] == [3, 7, 16]
    assert [s.layer for s in SparseVLM(keep=9).in_decoder(4)] == [1, 2, 3]
    assert stage_layers("x", None, (0.25, 0.5, 0.75), 3) == [1, 2]
    for n in (1, 2, 7, 576):
        for k in range(1, n + 1):
            left = [n, *tapered(n, k, 3)]
            assert left == sorted(left, reverse=True)
            assert left[-1] == k
    for layers in ((), (0, 2), (2, 2), (3, 2), (2, 9)):
        with pytest.raises(InputError, match="layers must ascend within 1 to 8"):
            PyramidDrop(layers=layers).in_decoder(9)


def slow_peaks(x: list[list[float]], clusters: int) -> tuple[list[int], list[int]]:
    """Peaks by falling score and the cluster of each token, from the definition."""
    everything = range(len(x))
    far = [[math.dist(a, b) / math.sqrt(len(a)) for b in x] for a in x]
    density = [math.exp(-sum(d * d for d in sorted(line)[:clusters]) / clusters) for line in far]
    rank = {i: r for r, i in enumerate(sorted(everything, key=lambda i: (-density[i], i)))}
    score = []
    for i in everything:
        denser = [far[i][j] for j in everything if rank[j] < rank[i]]
        score.append(density[i] * (min(denser) if denser else max(map(max, far))))
    peaks = sorted(everything, key=lambda i: (-score[i], i))[:clusters]
    return peaks, [min(range(clusters), key=lambda c: far[i][peaks[c]]) for i in everything]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("clusters", [1, 2, 5])
def test_density_peaks(seed: int, clusters: int) -> None:
    """With two neighbours, mutual ones tie exactly: the lower index is the denser."""
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(seed))
    peaks, label = density_peaks(x, clusters, clusters)
    assert (peaks.tolist(), label.tolist()) == slow_peaks(x.double().tolist(), clusters)


@pytest.mark.parametrize("seed", SEEDS)
def test_sparsevlm(seed: int) -> None:
    seen = prompt(seed)
    stage = SparseVLM(keep=0.125).in_decoder(32)[0]  # 40 -> 20 -> 10 -> 5
    got = stage.rule(seen)
    assert seen.embeddings is not None
    image = seen.embeddings[seen.visual].double().tolist()
    words = seen.embeddings[46:].double().tolist()
    weight = [[math.exp(dot(v, w)) for w in words] for v in image]
    mean = [sum(e[t] / sum(e) for e in weight) / len(weight) for t in range(len(words))]
    raters = [46 + t for t, r in enumerate(mean) if r > sum(mean) / len(mean)]
    rows = [row(seen, place) for place in raters]
    score = [sum(r[i] for r in rows) / len(rows) for i in seen.visual]
    order = sorted(range(40), key=lambda i: -score[i])
    # 19 plain ones leave 21, of which int(6.3) + 1 = 7 are recycled, in int(0.7) + 1 = 1 cluster
    assert split_budget(40, 20, 0.3) == (19, 1)
    again = order[19:26]
    x = seen.hidden[seen.visual].double()
    peaks, label = slow_peaks(x[again].tolist(), 1)
    assert got.indices[0].tolist() == sorted([*order[:19], again[peaks[0]]])
    out = got.apply(seen.hidden[None, seen.visual])[0]
    for place, token in zip(got.indices[0].tolist(), out, strict=True):
        members = [i for i, c in zip(again, label, strict=True) if again[peaks[c]] == place]
        torch.testing.assert_close(token.double(), x[members or [place]].mean(0))


def test_sparsevlm_spends_its_budget_exactly() -> None:
    for n in range(2, 200, 7):
        for total in range(1, n):
            plain, clusters = split_budget(n, total, 0.3)
            assert plain + clusters == total
            assert plain >= 1
            assert clusters <= max(int(0.3 * (n - plain)) + 1, 0)
    seen = prompt(0)
    got = SparseVLM(keep=0.125, recycle=0).in_decoder(32)[0].rule(seen)
    assert got.merge is None
    assert len(got.indices[0]) == 20


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k", [3, 11, 17])
def test_dart(seed: int, k: int) -> None:
    seen = prompt(seed, norm=lambda x: x * torch.arange(1, 9))
    (stage,) = DART(keep=k, layer=3, image_pivots=4, text_pivots=2).in_decoder(8)
    assert seen.attention is not None
    norm = seen.attention.key[1].double().abs().sum((0, 2)).tolist()
    image = sorted(range(6, 46), key=lambda i: -norm[i])[: min(4, k)]
    text = sorted(range(46, 60), key=lambda i: -norm[i])[:2]
    x = (seen.hidden * torch.arange(1, 9)).double().tolist()
    kept, left = list(image), k - len(image)
    for place, pivot in enumerate([*image, *text]):
        count = left // 6 + (place < left % 6)
        free = [i for i in range(6, 46) if i not in kept]
        kept += sorted(free, key=lambda i: cosine(x[i], x[pivot]))[:count]
    assert stage.rule(seen).indices[0].tolist() == sorted(i - 6 for i in kept)
    assert len(kept) == k


@pytest.mark.parametrize("seed", SEEDS)
def test_framefusion_merges_runs(seed: int) -> None:
    """5 frames of 2 x 4 places; some places change little from frame to frame."""
    generator = torch.Generator().manual_seed(seed)
    seen, order = prompt(seed), torch.randperm(40, generator=generator)
    still = torch.randn(8, 8, generator=generator)
    noise = torch.rand(40, 1, generator=generator) * torch.randn(40, 8, generator=generator)
    seen.hidden[seen.visual] = still.repeat(5, 1) + noise
    seen.hidden[seen.visual] = seen.hidden[seen.visual][order]
    seen.cell = seen.cell[order]
    seen.size = torch.randint(1, 4, (40,), generator=generator).float()
    x, size = seen.hidden[seen.visual].double(), seen.size.double()
    by_cell = {tuple(c): i for i, c in enumerate(seen.cell.tolist())}
    runs: list[list[int]] = []
    for h in range(2):
        for w in range(4):
            for t in range(5):
                i = by_cell[0, t, h, w]
                if t and cosine(x[runs[-1][-1]].tolist(), x[i].tolist()) >= 0.6:
                    runs[-1].append(i)
                else:
                    runs.append([i])
    runs.sort()
    assert 8 < len(runs) < 36
    got = FrameFusion(keep=4).in_decoder(9)[0].rule(seen)
    assert got.indices[0].tolist() == [run[0] for run in runs]
    want = torch.stack([(x[run] * size[run, None]).sum(0) / size[run].sum() for run in runs])
    torch.testing.assert_close(
        got.apply(seen.hidden[None, seen.visual])[0].double(), want, rtol=1e-5, atol=1e-6
    )


def test_framefusion_goes_from_merging_to_pruning() -> None:
    seen = prompt(0, norm=None)
    stages = FrameFusion(keep=0.5, similarity=0.99).in_decoder(9)
    assert len(stages[0].rule(seen).indices[0]) == 40  # nothing alike: merging ends
    score = [sum(row(seen, j)[i] for j in range(60)) for i in range(6, 46)]
    torch.testing.assert_close(seen.received()[6:46] * 60, torch.tensor(score))
    got = stages[1].rule(seen).indices[0]
    assert got.tolist() == best(score, 20)
    seen.visual = seen.visual[got]
    assert len(stages[2].rule(seen).indices[0]) == 20


def test_framefusion_merges_no_more_than_the_budget() -> None:
    seen = prompt(0)
    seen.hidden[seen.visual] = torch.arange(64.0).cos().view(8, 8).repeat(5, 1)
    got = FrameFusion(keep=30).in_decoder(9)[0].rule(seen)
    assert len(got.indices[0]) == 30
    (last,) = FrameFusion(keep=5).in_decoder(2)
    assert len(last.rule(prompt(0)).indices[0]) == 5


def test_framefusion_with_a_cost_does_not_keep_all() -> None:
    assert FrameFusion(keep=1.0).keeps_all
    assert not FrameFusion(keep=1.0, cost=0.8).keeps_all


def test_framefusion_meets_its_cost() -> None:
    assert tokens_to_keep(100, [100], 100, 0.5, 8) == 43  # 100 + 7 x 43 = 401
    assert tokens_to_keep(100, [100, 60], 60, 0.5, 8) == 40
    assert tokens_to_keep(100, [100, 60], 60, 0.2, 8) == 1
    schedule = FrameFusion(cost=0.5).decoder_schedule(8, 600)
    assert sum(schedule) == 2400
    with pytest.raises(InputError, match=r"cannot be met by 4 layers.*above 0\.500"):
        FrameFusion(cost=0.3).in_decoder(4)
    assert FrameFusion(keep=30).decoder_schedule(5, 100) == [100, 100, 90, 81, 30]
