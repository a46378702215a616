"""Greedy choice of tokens that span the largest volume: MAP of a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.pruning.greedy import unit
from mmtok.pruning.rank import top

# Where what is left of every token falls below this share of the longest, the rank is exhausted.
EXHAUSTED = {torch.float32: 1e-6, torch.float64: 1e-12}


def greedy_determinant(x: Tensor, quality: Tensor, k: int) -> Tensor:
    """Choose k of N tokens, each with the largest gain in det(L), L_ij = q_i cos(i, j) q_j.

    L is the Gram matrix of the rows q_i x_i / |x_i|, so a token's gain is its squared distance from
    the span of those chosen. One direction is taken out of that distance per step: O(NkD + k²D)
    time and O(N + kD) memory, no N x N matrix. Once nothing is left outside the span, the rest of
    the budget goes to the highest quality. Ties go to the lower index.

    Args:
        x: (N, D) features.
        quality: (N,) not negative.
        k: how many, 1 <= k <= N.

    Returns:
        (k,) int64 in the order of choice.
    """
    x = unit(x)
    quality = quality.to(x)
    x = x * quality[:, None]
    left = x.square().sum(1)
    floor = EXHAUSTED[x.dtype] * float(left.max())
    basis = x.new_zeros(min(k - 1, x.shape[1]), x.shape[1])
    chosen: list[int] = []
    while len(chosen) < k:
        best = int(left.argmax())
        if float(left[best]) <= floor:
            break
        step = len(chosen)
        chosen.append(best)
        left[best] = -torch.inf
        if step < len(basis):
            basis[step] = _direction(x[best], basis[:step])
            left -= (x @ basis[step]).square()
    taken = torch.tensor(chosen, dtype=torch.int64, device=x.device)
    rest = top(quality.index_fill(0, taken, -torch.inf), k - len(chosen))
    return torch.cat([taken, rest])


def _direction(row: Tensor, basis: Tensor) -> Tensor:
    """The unit vector of `row` (D,) outside the span of orthonormal `basis` (s, D)."""
    for _ in range(2):  # once leaves rounding errors of the size of what is subtracted
        row = row - basis.T @ (basis @ row)
    direction: Tensor = row / row.norm()
    return direction


def determinant_flops(n: int, k: int, width: int) -> int:
    """Floating point operations of `greedy_determinant`; an upper bound where rank runs out."""
    steps = min(k - 1, width)
    return 2 * n * width * steps + 8 * width * (steps * (steps - 1) // 2)
