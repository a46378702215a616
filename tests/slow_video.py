"""Slow fp64 references for the video methods, in plain Python, from the definitions alone."""

from __future__ import annotations

import math

import torch

from mmtok.models.families import cells
from mmtok.pruning import Selection, VisualTokens
from tests.test_methods import best, cosine, dot, mean

Vector = list[float]
Mix = dict[int, dict[int, float]]  # output place -> {source place: weight}


def video(
    seed: int, t: int = 6, h: int = 3, w: int = 4, *, still: float = 0.5, cls: bool = False
) -> VisualTokens:
    """A clip of two scenes in which a share of the cells is nearly still."""
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(2, h * w, 8, generator=generator)
    scene = (torch.arange(t) >= (t + 1) // 2).long()
    rough = torch.rand(h * w, generator=generator) >= still
    noise = torch.randn(t, h * w, 8, generator=generator) * (0.1 + 1.2 * rough[:, None])
    attention = torch.rand(1, t * h * w, generator=generator) if cls else None
    return VisualTokens(
        features=(scenes[scene] + noise).view(1, -1, 8),
        position=cells(t, h, w)[None],
        cls_attention=attention,
    )


def mix(selection: Selection, item: int = 0) -> Mix:
    """What goes into each output token of a selection."""
    assert selection.merge is not None
    index = selection.indices[item].tolist()
    out: Mix = {place: {} for place in index}
    triples = zip(*(part.tolist() for part in selection.merge[item]), strict=True)
    for source, slot, weight in triples:
        assert source not in out[index[slot]]
        out[index[slot]][source] = weight
    return out


def same(got: Mix, want: Mix) -> None:
    """Equal places, equal sources, equal weights."""
    assert sorted(got) == sorted(want)
    for place, sources in want.items():
        assert got[place].keys() == sources.keys()
        for source, weight in sources.items():
            assert math.isclose(got[place][source], weight, rel_tol=1e-5)


def gap(a: Vector, b: Vector) -> float:
    """Euclidean distance over the root of the width."""
    return math.sqrt(math.fsum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / len(a))


def slow_peaks(x: list[Vector], k: int, near: int) -> list[int]:
    """Places of the k largest log of exp(-mean squared gap) * gap to the next denser one."""
    if k in (0, len(x)):
        return list(range(k))
    far = [[gap(a, b) for b in x] for a in x]
    density = [-math.fsum(d * d for d in sorted(row)[:near]) / near for row in far]
    widest = max(map(max, far))
    score = []
    for i, row in enumerate(far):
        above = [
            d
            for j, d in enumerate(row)
            if density[j] > density[i] or (density[j] == density[i] and j < i)
        ]
        score.append(density[i] + math.log(min(above, default=widest)))
    return best(score, k)


def joined(x: list[Vector], centre: list[int]) -> list[int]:
    """Which centre each row is nearest to."""
    return [
        centre.index(i)
        if i in centre
        else min(range(len(centre)), key=lambda c: gap(v, x[centre[c]]))
        for i, v in enumerate(x)
    ]


def blended(centre: int, others: list[int], share: float) -> dict[int, float]:
    """Weights of a centre and of those that joined it."""
    if not others:
        return {centre: 1.0}
    own = max(share, 1 / (1 + len(others)))
    return {centre: own} | {i: (1 - own) / len(others) for i in others}


def shares(sizes: list[int], total: int) -> list[int]:
    """Largest remainder, in proportion to sizes."""
    exact = [total * size / sum(sizes) for size in sizes]
    whole = [math.floor(value) for value in exact]
    for i in best([v - w for v, w in zip(exact, whole, strict=True)], total - sum(whole)):
        whole[i] += 1
    return whole


def distinct(x: list[Vector], frame: list[int]) -> dict[int, float]:
    """Cosine distance of each token of a frame from the mean of the frame's directions."""
    units = {i: [v / math.sqrt(dot(x[i], x[i])) for v in x[i]] for i in frame}
    middle = mean(list(units.values()))
    return {i: 1 - cosine(units[i], middle) for i in frame}
