"""Methods that act between encoder and decoder, against slow fp64 references (N <= 64)."""

from __future__ import annotations

import math
from math import nan

import pytest
import torch

from mmtok.models.families import cells
from mmtok.pruning import (
    CDPruner,
    PruMerge,
    Query,
    TokenCorr,
    VisualTokens,
    build,
)
from mmtok.pruning.determinant import greedy_determinant
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


def test_cdpruner_beyond_the_rank_starts_anew() -> None:
    """Seven dimensions: the eighth token is the most relevant of the rest, and so on."""
    tokens, asked = make(0, 40), query(0)
    x, r = tokens.features[0], CDPruner().relevance(asked.embeddings[0], tokens.features[0])
    chosen = greedy_determinant(x, r, 20)
    assert chosen.unique().numel() == 20
    rest = [i for i in range(40) if i not in chosen[:7].tolist()]
    assert int(chosen[7]) == max(rest, key=r.tolist().__getitem__)
    again = torch.tensor(rest)[greedy_determinant(x[rest], r[rest], 7)]
    assert torch.equal(chosen[7:14], again)


def test_cdpruner_does_not_read_the_order_of_tokens() -> None:
    tokens, asked = make(3, 40), query(3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    mixed = VisualTokens(features=tokens.features[:, order])
    got = order[CDPruner(keep=6).select(mixed, asked).indices[0]].sort().values
    assert torch.equal(got, CDPruner(keep=6).select(tokens, asked).indices[0])


def test_cdpruner_without_text_and_with_zero_vectors() -> None:
    x = make(0, 40).features
    assert CDPruner().relevance(torch.zeros(0, 7), x[0]).tolist() == [1.0] * 40
    assert len(CDPruner(keep=5).select(make(0, 40), query(0, words=0)).indices[0]) == 5
    x[0, 3:] = 0
    got = CDPruner(keep=6).select(VisualTokens(features=x), query(0)).indices[0]
    assert got.tolist() == [0, 1, 2, 3, 4, 5]


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


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("adaptive", [False, True])
def test_tokencorr(seed: int, adaptive: bool) -> None:
    """Two crops of 24, the second of which repeats itself."""
    base = make(seed)
    assert base.keys is not None
    assert base.cls_attention is not None
    keys = base.keys.clone()
    keys[0, 30:] = keys[0, 30] + 0.3 * keys[0, 30:]
    tokens = VisualTokens(
        features=base.features,
        position=cells(2, 4, 6)[None],
        keys=keys,
        cls_attention=base.cls_attention,
    )
    k, seen, x = keys[0].double().tolist(), base.cls_attention[0].tolist(), rows(base)
    crops = [range(24), range(24, 48)]
    telling = [
        sum(sum(cosine(k[i], k[j]) > 0.6 for j in crop if j != i) < 0.3 * 24 for i in crop)
        for crop in crops
    ]
    assert 0 < telling[1] < telling[0]
    total = min(sum(telling), 40) if adaptive else 9
    quota = telling
    if sum(telling) > total:
        portion = [total * n / sum(telling) for n in telling]
        quota = [math.floor(v) for v in portion]
        for c in best([v - q for v, q in zip(portion, quota, strict=True)], total - sum(quota)):
            quota[c] += 1
    members: dict[int, list[int]] = {}
    for crop, count in zip(crops, quota, strict=True):
        kept = [crop[i] for i in best([seen[i] for i in crop], count)]
        members |= {i: [i] for i in kept}
        for i in crop:
            if i not in kept:
                members[max(kept, key=lambda j: cosine(k[i], k[j]))].append(i)
    reducer = TokenCorr(keep=40 if adaptive else 9, adaptive=adaptive, similarity=0.6, repeats=0.3)
    chosen = reducer.select(tokens)
    assert chosen.indices[0].tolist() == sorted(members)
    want = torch.tensor([mean([x[j] for j in members[i]]) for i in sorted(members)])
    torch.testing.assert_close(chosen.apply(base.features)[0], want.float())


def test_tokencorr_leaves_tokens_without_a_key_out() -> None:
    tokens = anyres()
    assert tokens.keys is not None
    assert tokens.cls_attention is not None
    newline = torch.tensor([11, 14, 17, 20])
    tokens.keys[0, newline], tokens.cls_attention[0, newline] = 0, 0
    chosen = TokenCorr(keep=6).select(tokens)
    assert chosen.merge is not None
    assert not set(newline.tolist()) & set(chosen.merge[0][0].tolist())


@pytest.mark.parametrize(
    "spec",
    [
        "prumerge(keep=0.4)",
        "prumerge(keep=0.4, adaptive=True)",
        "pool(keep=0.4)",
        "quota(keep=0.4)",
        "tokencorr(keep=0.4)",
        "tokencorr(keep=0.5, adaptive=True)",
        "visionzip(keep=0.4)",
    ],
)
def test_merging_a_batch_equals_its_items_and_conserves_mass(spec: str) -> None:
    """Ragged: an AnyRes picture beside a shorter one, whose padding holds NaN."""
    one, reducer = anyres(), build(spec)[0]
    assert one.cls_attention is not None
    assert one.keys is not None
    short = torch.arange(21) < 13
    both = VisualTokens(
        features=torch.stack([one.features[0], one.features[0].masked_fill(~short[:, None], nan)]),
        mask=torch.stack([torch.ones(21, dtype=torch.bool), short]),
        position=one.position.repeat(2, 1, 1),
        grid=one.grid.repeat(2, 1),
        overview=torch.stack([torch.arange(21) < 9] * 2),
        cls_attention=one.cls_attention.repeat(2, 1),
        keys=one.keys.repeat(2, 1, 1),
    )
    asked = query(0, width=4)
    twice = Query(embeddings=asked.embeddings.repeat(2, 1, 1), mask=asked.mask.repeat(2, 1))
    together = reducer.select(both, twice)
    for item, n in enumerate((21, 13)):
        alone = VisualTokens(
            features=one.features[:, :n],
            position=one.position[:, :n],
            grid=one.grid,
            overview=torch.arange(n)[None] < 9,
            cls_attention=one.cls_attention[:, :n],
            keys=one.keys[:, :n],
        )
        single = reducer.select(alone, asked)
        assert torch.equal(together.indices[item], single.indices[0])
        got = together.apply(both.features)[item]
        assert torch.equal(got, single.apply(alone.features)[0])
        assert together.merge is not None
        _, slot, weight = together.merge[item]
        total = torch.zeros(len(got)).index_add_(0, slot, weight)
        torch.testing.assert_close(total, torch.ones(len(got)))
