"""Segmenting a clip: where one scene ends and the next begins, by three published rules.

A segment is a range of frames; segments follow each other and cover the clip.
"""

from __future__ import annotations

from itertools import groupby, pairwise

import torch
from torch import Tensor

LONGEST = 1024  # frames of a window


def at_cuts(alike: Tensor, segments: int, threshold: float) -> list[range]:
    """Cut where consecutive frames differ: at the least alike pairs, and below a threshold.

    Args:
        alike: (T - 1,) similarity of each frame to the next.
        segments: at least so many, or one per frame of a shorter clip.
        threshold: every pair less alike is cut as well.
    """
    cut = alike < threshold
    cut[alike.sort(stable=True).indices[: segments - 1]] = True
    edges = [0, *(cut.nonzero().squeeze(1) + 1).tolist(), len(alike) + 1]
    return [range(start, end) for start, end in pairwise(edges)]


def of_clusters(labels: list[int]) -> list[range]:
    """Segments from clusters of frames, which may be scattered.

    The longest run of each cluster, the first of equals, is a segment if it has two frames or more.
    The frames between two segments join the longer of them, the left of equals. Without any run of
    two frames the clip is one segment.

    Args:
        labels: cluster of each of the T frames.
    """
    runs: dict[int, range] = {}
    start = 0
    for label, group in groupby(labels):
        end = start + len(list(group))
        if end - start > len(runs.get(label, ())):
            runs[label] = range(start, end)
        start = end
    kept = sorted((run for run in runs.values() if len(run) > 1), key=lambda run: run.start)
    edges = [0]
    for left, right in pairwise(kept):
        edges.append(right.start if len(left) >= len(right) else left.stop)
    return [range(start, end) for start, end in pairwise([*edges, len(labels)])]


def most_still(still: Tensor) -> list[range]:
    """Windows that save the most tokens when cells that stay still in a window become one token.

    The sum over windows of (cells still all through it) x (frames - 1) is maximal, found by dynamic
    programming; of equal ways the one with the longest last window is taken. O(T (T + C)).

    Args:
        still: (T - 1, C) bool, whether a cell is the same in a frame and the next.
    """
    steps, cells = still.shape
    run = torch.zeros(cells, dtype=torch.int64, device=still.device)
    saved, first = [0], [0]
    for end in range(1, steps + 1):
        run = (run + 1) * still[end - 1]
        at_least = torch.bincount(run, minlength=end + 1).flip(0).cumsum(0).flip(0).tolist()
        best, start = -1, 0
        for begin in range(max(0, end - LONGEST + 1), end + 1):
            before = saved[begin - 1] if begin else 0
            total = before + at_least[end - begin] * (end - begin)
            if total > best:
                best, start = total, begin
        saved.append(best)
        first.append(start)
    windows = []
    end = steps
    while end >= 0:
        windows.append(range(first[end], end + 1))
        end = first[end] - 1
    return windows[::-1]
