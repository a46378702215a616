"""Greedy choice of tokens that span the largest volume: MAP of a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.pruning.greedy import GRAM_LIMIT, on_gpu, unit

# Where what is left of every token falls below this share of the longest, the rank is exhausted.
EXHAUSTED = {torch.float32: 1e-6, torch.float64: 1e-12}
# k² N above which one block of a GPU would read too much of what it has written.
LONGEST = 2**30


def greedy_determinant(x: Tensor, quality: Tensor, k: int) -> Tensor:
    """Choose k of N tokens, each with the largest gain in det(L), L_ij = q_i cos(i, j) q_j.

    L is the Gram matrix of the rows q_i x_i / |x_i|, so a token's gain is its squared distance from
    the span of those chosen. One direction is taken out of that distance per step: O(NkD + k²D)
    time and O(N + kD) memory, no N x N matrix. Once nothing is left outside the span, the choice
    starts anew among the tokens that remain. Ties go to the lower index. On a GPU one kernel does
    the same on the Gram matrix, see `by_gram`.

    Args:
        x: (N, D) features.
        quality: (N,) not negative.
        k: how many, 1 <= k <= N.

    Returns:
        (k,) int64 in the order of choice.
    """
    x = unit(x)
    x = x * quality.to(x)[:, None]
    if by_gram(x, k):
        from mmtok.pruning.fused import volume

        return volume(x, k, EXHAUSTED[x.dtype])
    whole = x.square().sum(1)  # of tokens not yet chosen
    # Rows that are not in use are zero: they change nothing, and the cost is known beforehand.
    basis = x.new_zeros(_rank(k, x.shape[1]), x.shape[1])
    chosen = torch.empty(k, dtype=torch.int64, device=x.device)
    left, floor, used = whole.clone(), -torch.inf, 0
    for step in range(k):
        best = int(left.argmax())
        if used in (0, x.shape[1]) or float(left[best]) <= floor:
            basis.zero_()
            left, used = whole.clone(), 0
            best = int(left.argmax())
            floor = EXHAUSTED[x.dtype] * float(left[best])
        chosen[step] = best
        left[best] = whole[best] = -torch.inf
        if step < k - 1:
            direction = _direction(x[best], basis)
            left -= (x @ direction).square()
            basis[used] = direction
            used += 1
    return chosen


def by_gram(x: Tensor, k: int) -> bool:
    """Whether `greedy_determinant` of k among (N, D) tokens runs as one kernel of a GPU."""
    return on_gpu(x) and len(x) <= GRAM_LIMIT and k * k * len(x) <= LONGEST


def _direction(row: Tensor, basis: Tensor) -> Tensor:
    """The unit vector of `row` (D,) outside the span of orthonormal `basis` (R, D); or zero."""
    for _ in range(2):  # once leaves rounding errors of the size of what is subtracted
        row = row - basis.T @ (basis @ row)
    direction: Tensor = row / row.norm().clamp_min(torch.finfo(row.dtype).tiny)
    return direction


def _rank(k: int, width: int) -> int:
    return min(max(k - 1, 1), width)


def determinant_flops(n: int, k: int, width: int, *, gram: bool = False) -> int:
    """Floating point operations of `greedy_determinant`, 1 multiply-accumulate = 2."""
    if gram:
        return 2 * n * n * width
    return (k - 1) * (2 * n * width + 8 * _rank(k, width) * width)
