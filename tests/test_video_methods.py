"""The video methods against slow fp64 references (see slow_video.py)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mmtok.pruning import DyCoke, FastVID, HoliTom, PruneVid, VQToken
from mmtok.pruning.base import seeded
from mmtok.pruning.methods.dycoke import SPARE, WHOLE, compared_with
from tests.slow_video import (
    Mix,
    Vector,
    blended,
    distinct,
    joined,
    mix,
    same,
    shares,
    slow_peaks,
    video,
)
from tests.test_methods import best, cosine, mean, rows

SEEDS = range(4)
P = 12


def test_dycoke_compares_within_groups_of_four() -> None:
    w, s = WHOLE, SPARE
    assert compared_with(11) == [w, 0, 0, 2, w, 4, 4, 6, w, 8, 8]
    assert compared_with(9, "repo") == [w, 0, 0, 2, w, 4, 4, 6, s]
    assert compared_with(8, "repo") == [w, 0, 0, 2, w, 4, w, 6]
    assert [compared_with(t, "repo") for t in (1, 2, 3)] == [[w], [w, 0], [w, 0, s]]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("t", "k"), [(8, 51), (7, 40), (5, 30), (3, 20)])
def test_dycoke(seed: int, t: int, k: int) -> None:
    tokens = video(seed, t)
    x, against = rows(tokens), compared_with(t)
    later = [f for f in range(t) if against[f] != WHOLE]
    want = [i for f in range(t) if against[f] == WHOLE for i in range(P * f, P * f + P)]
    alike = {
        i: cosine(x[i], x[i % P + P * against[f]]) for f in later for i in range(P * f, P * f + P)
    }
    for f, q in zip(later, shares([P] * len(later), k - len(want)), strict=True):
        want += sorted(range(P * f, P * f + P), key=lambda i: alike[i])[:q]
    assert DyCoke(keep=k).select(tokens).indices[0].tolist() == sorted(want)

    into: dict[int, list[int]] = {i: [] for i in want}
    for i in range(P * t):
        target = i
        while target not in into:
            target = target % P + P * against[target // P]
        into[target].append(i)
    same(
        mix(DyCoke(keep=k, merge=True).select(tokens)),
        {i: dict.fromkeys(members, 1 / len(members)) for i, members in into.items()},
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize(("t", "k", "segments"), [(6, 30, 3), (6, 61, 2), (1, 7, 8), (9, 20, 2)])
def test_fastvid(seed: int, cls: bool, t: int, k: int, segments: int) -> None:
    tokens = video(seed, t, cls=cls)
    x = rows(tokens)
    frames = [list(range(P * f, P * f + P)) for f in range(t)]
    middle = [mean([x[i] for i in frame]) for frame in frames]
    alike = [cosine(a, b) for a, b in itertools.pairwise(middle)]
    cuts = sorted(best([-a for a in alike], segments - 1))
    edges = [0, *(c + 1 for c in cuts), t]
    quota = shares([P] * t, k)
    score = {i: v for frame in frames for i, v in distinct(x, frame).items()}
    if tokens.cls_attention is not None:
        score = dict(enumerate(tokens.cls_attention[0].tolist()))
    want: Mix = {}
    for start, end in itertools.pairwise(edges):
        anchors = list(range(end - 1, start - 1, -4))[::-1]
        salient = {f: quota[f] - int(0.4 * quota[f]) for f in range(start, end)}
        total = sum(int(0.4 * quota[f]) for f in range(start, end))
        # one by one to the anchor with least context, then to the other frame with least extra
        context, extra = dict.fromkeys(anchors, 0), dict.fromkeys(range(start, end), 0)
        for _ in range(total):
            open_to = [f for f in anchors if context[f] + salient[f] < P]
            if open_to:
                context[min(open_to, key=lambda f: context[f])] += 1
            else:
                others = [f for f in extra if f not in anchors and extra[f] + salient[f] < P]
                extra[min(others, key=lambda f: extra[f])] += 1
        rest = []
        for f in range(start, end):
            order = sorted(frames[f], key=lambda i: (-score[i], i))
            count = salient[f] + extra[f]
            want |= {i: {i: 1.0} for i in order[:count]}
            rest += order[count:]
        for f in anchors:
            pool = sorted(i for i in rest if i // P == f)
            places = slow_peaks([x[i] for i in pool], context[f], 4)
            centre = [pool[i] for i in places]
            near: dict[int, list[int]] = {c: [] for c in centre}
            for i in rest if centre else []:
                if i not in centre:
                    near[max(centre, key=lambda c: cosine(x[i], x[c]))].append(i)
            want |= {c: blended(c, near[c], 0.6) for c in centre}
    chosen = FastVID(keep=k, segments=segments, threshold=-1).select(tokens)
    same(mix(chosen), want)


def groups_of(
    windows: list[range],
    alike: dict[tuple[int, int], float],
    threshold: float,
    t: int,
    k: int,
    p: int = P,
) -> list[list[list[int]]]:
    """Still cells of each window, then the moving tokens of each frame, as lists of places."""
    left, still = p * t, {w: [] for w in range(len(windows))}  # type: dict[int, list[int]]
    for (w, cell), value in sorted(alike.items(), key=lambda pair: (-pair[1], pair[0])):
        saves = len(windows[w]) - 1
        if saves and value > threshold and left - saves >= k:
            still[w].append(cell)
            left -= saves
    groups = [[[p * f + c for f in windows[w]] for c in sorted(still[w])] for w in still]
    for w, window in enumerate(windows):
        groups += [[[p * f + c] for c in range(p) if c not in still[w]] for f in window]
    return groups


def centred(x: list[Vector], group: list[list[int]], q: int, share: float) -> Mix:
    """A group merged into q tokens by density peaks."""
    if not q:
        return {}
    points = [mean([x[i] for i in row]) for row in group]
    centre = slow_peaks(points, q, min(7, len(points)))
    label = joined(points, centre)
    out = {}
    for c, place in enumerate(centre):
        others = [j for j, to in enumerate(label) if to == c and j != place]
        weights = blended(place, others, share)
        out[group[place][0]] = {i: w / len(group[j]) for j, w in weights.items() for i in group[j]}
    return out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("t", "k"), [(8, 30), (8, 80), (1, 5), (4, 17), (8, 3)])
def test_prunevid(seed: int, t: int, k: int) -> None:
    tokens = video(seed, t)
    x = rows(tokens)
    middle = [mean([x[P * f + c] for c in range(P)]) for f in range(t)]
    label = joined(middle, slow_peaks(middle, max(t // 4, 1), min(7, t)))
    half = t // 2 if len(set(label)) == 2 else t
    assert label == sorted(label, key=lambda v: v != label[0]), "clusters are the scenes"
    assert len(set(label[:half])) == 1
    windows = [range(half), range(half, t)] if half < t else [range(t)]
    alike = {}
    for w, window in enumerate(windows):
        for c in range(P):
            pairs = [
                cosine(x[P * a + c], x[P * b + c]) for a, b in itertools.combinations(window, 2)
            ]
            alike[w, c] = math.fsum(pairs) / max(len(pairs), 1)
    groups = groups_of(windows, alike, 0.8, t, k)
    want: Mix = {}
    for group, q in zip(groups, shares([len(g) for g in groups], k), strict=True):
        want |= centred(x, group, q, 0)
    members = {place: list(sources) for place, sources in want.items()}
    for i in set(range(P * t)).difference(*members.values()):
        members[max(sorted(members), key=lambda m: cosine(x[i], x[m]))].append(i)
    want = {place: dict.fromkeys(found, 1 / len(found)) for place, found in members.items()}
    same(mix(PruneVid(keep=k).select(tokens)), want)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("t", "h", "k", "context"), [(6, 3, 20, 0.0), (6, 3, 60, 0.5), (1, 3, 5, 0.4), (4, 9, 14, 0.5)]
)
def test_holitom(seed: int, t: int, h: int, k: int, context: float) -> None:
    tokens, p = video(seed, t, h), 4 * h
    x = rows(tokens)
    step = [[cosine(x[p * f + c], x[p * f + p + c]) for c in range(p)] for f in range(t - 1)]

    def held(window: range) -> list[int]:
        return [c for c in range(p) if all(step[f][c] > 0.65 for f in window[:-1])]

    ways = []
    for inner in itertools.product([False, True], repeat=t - 1):
        edges = [0, *(f + 1 for f, cut in enumerate(inner) if cut), t]
        ways.append([range(a, b) for a, b in itertools.pairwise(edges)])
    saved = [sum(len(held(w)) * (len(w) - 1) for w in way) for way in ways]
    windows = ways[max(range(len(ways)), key=lambda i: (saved[i], len(ways[i][-1])))]
    alike = {
        (w, c): min((step[f][c] for f in window[:-1]), default=0.0)
        for w, window in enumerate(windows)
        for c in range(p)
    }
    groups = groups_of(windows, alike, 0.65, t, k, p)
    quotas = shares([len(g) for g in groups], k)
    want: Mix = {}
    for place, (group, q) in enumerate(zip(groups, quotas, strict=True)):
        if place < len(windows):
            want |= centred(x, group, q, 0.6)
            continue
        merged = math.floor(q * context + 0.5)
        frame = place - len(windows)
        score = distinct(x, list(range(p * frame, p * frame + p)))
        first = sorted((i for (i,) in group), key=lambda i: (-score[i], i))[: q - merged]
        want |= {i: {i: 1.0} for i in first}
        want |= centred(x, [row for row in group if row[0] not in first], merged, 0.6)
    same(mix(HoliTom(keep=k, context=context).select(tokens)), want)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("t", "k"), [(4, 6), (1, 4), (3, 20)])
def test_vqtoken(seed: int, t: int, k: int) -> None:
    tokens = video(seed, t)
    x = [[v / math.hypot(*row) for v in row] for row in rows(tokens)]
    n = P * t
    generator = seeded(5, "0")
    chosen = [int(torch.randint(n, (1,), generator=generator))]
    for draw in torch.rand(k, generator=generator, dtype=torch.float64).tolist()[1:]:
        weight = [
            min(math.dist(v, x[j]) ** 2 for j in chosen) + 1e-6 if i not in chosen else 0.0
            for i, v in enumerate(x)
        ]
        total = list(itertools.accumulate(weight))
        chosen.append(next(i for i, value in enumerate(total) if value > draw * total[-1]))
    centre = [x[i] for i in chosen]
    for _ in range(100):
        label = [max(range(k), key=lambda c: cosine(v, centre[c])) for v in x]
        if len(set(label)) < k:
            pytest.skip("an empty cluster: see test_video_math.py")
        after = [mean([v for v, to in zip(x, label, strict=True) if to == c]) for c in range(k)]
        moved = math.hypot(*(math.dist(a, b) for a, b in zip(after, centre, strict=True)))
        centre = after
        if moved < 1e-4:
            break
    members = [[i for i in range(n) if label[i] == c] for c in range(k)]
    place = tokens.position[0].tolist()
    goal = []
    for found in members:
        middle = mean([[float(v) for v in place[i]] for i in found])
        away = [
            (abs(p[0] - middle[0]), math.dist(p[1:], middle[1:]), i) for i, p in enumerate(place)
        ]
        goal.append(min(away)[2])
    got = mix(VQToken(keep=k, seed=5).select(tokens))
    want = {tuple(found): goal[c] for c, found in enumerate(members)}
    assert {tuple(sorted(sources)) for sources in got.values()} == set(want)
    order = sorted(range(k), key=lambda c: goal[c])
    last = -1
    for slot, c in enumerate(order):
        last = min(max(goal[c], last + 1), n - k + slot)
        assert set(got[last]) == set(members[c]) or goal.count(goal[c]) > 1
        assert all(math.isclose(w, 1 / len(got[last]), rel_tol=1e-6) for w in got[last].values())
