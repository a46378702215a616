"""Every selection rule against a slow fp64 reference written from its definition alone."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from mmtok.models.families import cells
from mmtok.pruning import (
    EVS,
    CoverageMax,
    DivPrune,
    FasterVLM,
    HoloV,
    Query,
    VidCom2,
    VisionZip,
    VisPruner,
    VisualTokens,
)

SEEDS = range(4)


def make(seed: int, n: int = 48, width: int = 7) -> VisualTokens:
    generator = torch.Generator().manual_seed(seed)
    return VisualTokens(
        features=torch.randn(1, n, width, generator=generator),
        cls_attention=torch.rand(1, n, generator=generator) / n,
        keys=torch.randn(1, n, 5, generator=generator),
    )


def clip(seed: int, t: int = 4, h: int = 3, w: int = 4, width: int = 8) -> VisualTokens:
    """Frames that change a little, and not everywhere."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(h * w, width, generator=generator)
    amount = torch.rand(t, h * w, 1, generator=generator)
    x = still + amount * torch.randn(t, h * w, width, generator=generator)
    return VisualTokens(features=x.view(1, -1, width), position=cells(t, h, w)[None])


def rows(tokens: VisualTokens) -> list[list[float]]:
    return tokens.features[0].double().tolist()


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(p * q for p, q in zip(a, b, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def mean(vectors: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def best(score: list[float], k: int) -> list[int]:
    return sorted(range(len(score)), key=lambda i: (-score[i], i))[:k]


@pytest.mark.parametrize("seed", SEEDS)
def test_divprune(seed: int) -> None:
    tokens = make(seed)
    x = rows(tokens)
    n = len(x)
    far = [[1 - cosine(x[i], x[j]) for j in range(n)] for i in range(n)]
    chosen = [max(range(n), key=lambda i: min(far[i][j] for j in range(n) if j != i))]
    while len(chosen) < 15:
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(far[i][j] for j in chosen)))
    assert DivPrune(keep=15).select(tokens).indices[0].tolist() == sorted(chosen)


@pytest.mark.parametrize("seed", SEEDS)
def test_fastervlm(seed: int) -> None:
    tokens = make(seed)
    assert tokens.cls_attention is not None
    want = sorted(best(tokens.cls_attention[0].tolist(), 11))
    assert FasterVLM(keep=11).select(tokens).indices[0].tolist() == want
    equal = VisualTokens(features=tokens.features, cls_attention=torch.ones(1, 48))
    assert FasterVLM(keep=5).select(equal).indices[0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", SEEDS)
def test_evs(seed: int) -> None:
    tokens = clip(seed)
    x = rows(tokens)
    change = [math.inf] * 12 + [1 - cosine(x[i], x[i - 12]) for i in range(12, 48)]
    assert EVS(keep=20).select(tokens).indices[0].tolist() == sorted(best(change, 20))


def test_evs_thins_a_first_frame_evenly_and_sees_views_as_one_still() -> None:
    tokens = clip(0)
    assert EVS(keep=4).select(tokens).indices[0].tolist() == [1, 4, 7, 10]
    views = VisualTokens(
        features=tokens.features,
        position=tokens.position,
        overview=torch.arange(48)[None] < 12,
    )
    assert EVS(keep=4).select(views).indices[0].tolist() == [6, 18, 30, 42]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n", "k"), [(48, 20), (47, 13), (9, 1)])
def test_vispruner(seed: int, n: int, k: int) -> None:
    tokens = make(seed, n)
    assert tokens.cls_attention is not None
    x = rows(tokens)
    order = best(tokens.cls_attention[0].tolist(), n)
    first, rest = order[: k // 2], order[k // 2 :]
    while len(rest) > k - k // 2:
        even, odd = rest[0::2], rest[1::2]
        near = {i: max(cosine(x[i], x[j]) for j in odd) for i in even}
        even.sort(key=lambda i: -near[i])
        rest = even[min(8, len(rest) - (k - k // 2), len(even)) :] + odd
    assert VisPruner(keep=k).select(tokens).indices[0].tolist() == sorted(first + rest)


@pytest.mark.parametrize("seed", SEEDS)
def test_holov(seed: int) -> None:
    n, k, chunks, alpha = 45, 16, 6, 0.5
    tokens = make(seed, n)
    assert tokens.cls_attention is not None
    x, attention = rows(tokens), tokens.cls_attention[0].tolist()
    edges = [0, 8, 16, 24, 31, 38, 45]
    weights = []
    for start, end in pairwise(edges):
        part, variance = range(start, end), []
        for i in part:
            similar = [cosine(x[i], x[j]) if i != j else 0.0 for j in part]
            mu = sum(similar) / (len(part) - 1)
            variance.append(sum((s - mu) ** 2 for s in similar) / (len(part) - 1))
        seen = [1000 * attention[i] for i in part]
        scale = (sum(seen) / len(part)) / (sum(variance) / len(part) + 1e-6)
        scores = [a + alpha * v * scale for a, v in zip(seen, variance, strict=True)]
        weights.append(sum(scores) / len(part))
    share = [k * w / sum(weights) for w in weights]
    quota = [math.floor(s) for s in share]
    for c in best(weights, k - sum(quota)):
        quota[c] += 1
    want = []
    for c, (start, end) in enumerate(pairwise(edges)):
        want += [start + i for i in best(attention[start:end], quota[c])]
    got = HoloV(keep=k, chunks=chunks, alpha=alpha).select(tokens).indices[0]
    assert got.tolist() == sorted(want)


@pytest.mark.parametrize("seed", SEEDS)
def test_vidcom2(seed: int) -> None:
    tokens, k = clip(seed), 17
    x = rows(tokens)
    middle = mean(x)
    spread = [math.fsum((v[c] - middle[c]) ** 2 for v in x) for c in range(8)]
    steady = sorted(range(8), key=lambda c: spread[c])[:4]
    x = [[v[c] for c in steady] for v in x]
    x = [[value / math.sqrt(dot(v, v)) for value in v] for v in x]

    def likeness(v: list[float], centre: list[float]) -> float:
        gap = math.fsum((p - q) ** 2 for p, q in zip(v, centre, strict=True))
        return sum(math.exp(-gap / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2))

    frames = [range(12 * t, 12 * t + 12) for t in range(4)]
    whole = mean(x)
    in_clip = [likeness(v, whole) for v in x]
    u = [-sum(in_clip[i] for i in frame) / 12 for frame in frames]
    e = [math.exp((value - max(u)) / 0.01) for value in u]
    weights = [1 + value / sum(e) - 0.25 for value in e]
    share = [k * w / sum(weights) for w in weights]
    assert max(share) < 12, "no frame is full"
    quota = [math.floor(s) for s in share]
    for t in best([s - q for s, q in zip(share, quota, strict=True)], k - sum(quota)):
        quota[t] += 1
    want = []
    for frame, q in zip(frames, quota, strict=True):
        centre = mean([x[i] for i in frame])
        score = [-(in_clip[i] + likeness(x[i], centre)) for i in frame]
        want += [frame[i] for i in best(score, q)]
    assert VidCom2(keep=k).select(tokens).indices[0].tolist() == sorted(want)


@pytest.mark.parametrize("seed", SEEDS)
def test_visionzip(seed: int) -> None:
    tokens, reducer = make(seed), VisionZip(keep=12, contextual=4)
    assert tokens.cls_attention is not None
    assert tokens.keys is not None
    x, keys = rows(tokens), tokens.keys[0].double().tolist()
    dominant = best(tokens.cls_attention[0].tolist(), 8)
    rest = [i for i in range(48) if i not in dominant]
    centres = [rest[0], rest[10], rest[20], rest[30]]
    members = {i: [i] for i in (*dominant, *centres)}
    for i in rest:
        if i not in centres:
            members[max(centres, key=lambda c: cosine(keys[i], keys[c]))].append(i)
    chosen = reducer.select(tokens)
    assert chosen.indices[0].tolist() == sorted(members)
    want = torch.tensor([mean([x[j] for j in members[i]]) for i in sorted(members)])
    torch.testing.assert_close(chosen.apply(tokens.features)[0], want.float())


def test_visionzip_splits_the_budget_as_published_and_conserves_mass() -> None:
    assert [VisionZip().split(k) for k in (64, 128, 192, 1)] == [
        (54, 10),
        (108, 20),
        (162, 30),
        (1, 0),
    ]
    tokens = make(5)
    chosen = VisionZip(keep=9, contextual=8).select(tokens)
    assert chosen.merge is not None
    source, slot, weight = chosen.merge[0]
    assert source.unique().numel() == 48
    torch.testing.assert_close(torch.zeros(9).index_add_(0, slot, weight), torch.ones(9))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("words", [0, 5])
def test_coveragemax(seed: int, words: int) -> None:
    tokens, reducer = make(seed, 40), CoverageMax(keep=9)
    x = rows(tokens)
    generator = torch.Generator().manual_seed(seed + 50)
    text = torch.randn(1, 5, 7, generator=generator)
    asks = [*text[0, :words].double().tolist(), *x]
    cover = []
    for place, row in enumerate(asks):
        heat, share = (0.02, 1 / 5) if place < words else (0.2, 0.5 / 40)
        e = [math.exp((cosine(row, v) - 1) / heat) for v in x]
        cover.append([share * value / math.fsum(e) for value in e])

    def total(chosen: list[int]) -> float:
        return math.fsum(max(row[i] for i in chosen) for row in cover)

    chosen: list[int] = []
    while len(chosen) < 9:
        rest = [i for i in range(40) if i not in chosen]
        chosen.append(max(rest, key=lambda i: total([*chosen, i])))
    query = Query(embeddings=text, mask=torch.arange(5)[None] < words)
    assert reducer.select(tokens, query).indices[0].tolist() == sorted(chosen)
