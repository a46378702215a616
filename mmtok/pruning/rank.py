"""Ranking and sharing out: ties always go to the lower index, totals are always exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def top(score: Tensor, k: int) -> Tensor:
    """(k,) places of the k largest of (N,) scores, largest first, ties to the lower index."""
    return score.sort(descending=True, stable=True).indices[:k]


def evenly(n: int, k: int, device: torch.device | None = None) -> Tensor:
    """(k,) ascending places among n: the middles of k equal stretches."""
    return (2 * torch.arange(k, device=device) + 1) * n // max(2 * k, 1)


def apportion(
    weights: Sequence[float],
    caps: Sequence[int],
    total: int,
    leftover: Literal["remainder", "weight"] = "remainder",
) -> list[int]:
    """Share out `total` in proportion to weights, nobody above its cap.

    Where a share exceeds its cap, the surplus goes to the others in proportion again. Shares are
    then rounded down, and what is left is given out one by one.

    Args:
        weights: not negative; where all of those with room are 0 they count as equal.
        caps: the most each can take.
        total: at most the sum of the caps.
        leftover: who comes first for what rounding left: the largest "remainder" or "weight".

    Returns:
        Counts that add up to total.
    """
    given = [0] * len(caps)
    while (left := total - sum(given)) > 0:
        room = {i: cap - given[i] for i, cap in enumerate(caps) if cap > given[i]}
        weight = sum(weights[i] for i in room)
        share = {i: left * (weights[i] / weight if weight > 0 else 1 / len(room)) for i in room}
        full = [i for i in room if share[i] >= room[i]]
        if full:
            for i in full:
                given[i] = caps[i]
            continue
        whole = {i: math.floor(share[i]) for i in room}
        rank = {i: share[i] - whole[i] if leftover == "remainder" else weights[i] for i in room}
        order = sorted(room, key=rank.__getitem__, reverse=True)  # stable: ties to the lower index
        extra = order[: left - sum(whole.values())]
        for i in room:
            given[i] += whole[i] + (i in extra)
    return given


def with_least(weights: Sequence[float], caps: Sequence[int], total: int, least: int) -> list[int]:
    """`apportion`, where nobody gets less than `least`, or than its cap if that is below.

    Args:
        weights: not negative.
        caps: the most each can take.
        total: at most the sum of the caps.
        least: lowered where the total does not hold so much for each.
    """
    low = [min(least, total // max(len(caps), 1), cap) for cap in caps]
    given = list(low)
    free = list(range(len(caps)))
    while free:
        left = total - sum(low[i] for i in range(len(caps)) if i not in free)
        shares = apportion([weights[i] for i in free], [caps[i] for i in free], left)
        for i, share in zip(free, shares, strict=True):
            given[i] = max(share, low[i])
        enough = [i for i, share in zip(free, shares, strict=True) if share >= low[i]]
        if enough == free:
            break
        free = enough
    return given
