"""Greedy coverage: choose tokens so that together they cover the rows of a matrix best."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.pruning.greedy import on_gpu, unit

# Candidates whose gain is recomputed together.
BLOCK = 64


def greedy_coverage(cover: Tensor, k: int) -> Tensor:
    """Choose k of N tokens; each adds most to the sum over rows of the largest cover so far.

    A token's gain can only shrink as others are chosen, so gains of earlier steps are bounds: in
    each step only tokens whose bound reaches the best gain found are looked at again. The result
    is that of recomputing all gains. Ties go to the lower index.

    Args:
        cover: (N, R), not negative: how well token n covers row r.
        k: how many, 1 <= k <= N.

    Returns:
        (k,) int64 in the order of choice.
    """
    if on_gpu(cover):
        from mmtok.pruning.fused import covering

        return covering(cover, k)
    covered = cover.new_zeros(cover.shape[1])
    bound = cover.new_full((len(cover),), torch.inf)
    chosen: list[int] = []
    for _ in range(k):
        values, order = bound.sort(descending=True, stable=True)
        best, gain = -1, -1.0
        for start in range(0, len(order) - len(chosen), BLOCK):
            if (float(values[start]), -int(order[start])) < (gain, -best):
                break
            block = order[start : min(start + BLOCK, len(order) - len(chosen))]
            fresh = (cover[block] - covered).clamp_min(0).sum(1)
            bound[block] = fresh
            most = float(fresh.max())
            first = int(block[fresh == most].min())
            if (most, -first) > (gain, -best):
                best, gain = first, most
        chosen.append(best)
        covered = torch.maximum(covered, cover[best])
        bound[best] = -torch.inf
    return torch.tensor(chosen, device=cover.device)


def attention_like(rows: Tensor, x: Tensor, temperature: float) -> Tensor:
    """(N, R) share of each of N tokens in the softmax over tokens of every row's cosines.

    Args:
        rows: (R, D) what asks.
        x: (N, D) tokens.
        temperature: divides the cosines.
    """
    return ((unit(rows) @ unit(x).T) / temperature).softmax(1).T
