"""Greedy choices on a GPU, as Triton kernels: the small steps of a loop without a launch for each.

`greedy_diverse`, `greedy_coverage` and `greedy_determinant` come here where their tensors lie on a
CUDA device; the torch code there is the reference, and what runs elsewhere. `spread` and `volume`
are one kernel each, in one block that holds the scores in its registers. `covering` launches one
kernel and four small operations a step. None of them waits for the host to look at a number.

Only imported where it runs: Triton comes with torch where there is CUDA. The kernels are checked in
Triton's interpreter and compiled for sm_80 and sm_90 by the tests; how fast they are has not been
measured yet.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NOTHING = tl.constexpr(-float("inf"))


@triton.jit
def _spread(gram, score, chosen, n, k, total: tl.constexpr, block: tl.constexpr):
    place = tl.arange(0, block)
    far = tl.load(score + place, mask=place < n, other=NOTHING)
    last = tl.load(chosen).to(tl.int32)
    for step in range(1, k):
        near = tl.load(gram + last * n + place, mask=place < n, other=0.0)
        far = far + (1 - near) if total else tl.minimum(far, 1 - near)
        last = tl.argmax(far, 0, tie_break_left=True)
        tl.store(chosen + step, last)
        far = tl.where(place == last, NOTHING, far)


def spread(gram: Tensor, score: Tensor, chosen: Tensor, *, total: bool) -> None:
    """Fill `chosen` (k,) int64, whose first entry is given, as `greedy_diverse` does.

    Args:
        gram: (N, N) cosines.
        score: (N,) at the start, -inf at the first token.
        chosen: written to.
        total: whether distances add up; else the smallest counts.
    """
    n, block = len(score), triton.next_power_of_2(len(score))
    with torch.cuda.device_of(gram):
        _spread[(1,)](
            *(gram.contiguous(), score, chosen, n, len(chosen)),
            total=total,
            block=block,
            num_warps=_warps(block),
        )


@triton.jit
def _gains(cover, covered, taken, gain, n, width, rows: tl.constexpr, columns: tl.constexpr):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.arange(0, columns)
    start = cover + row.to(tl.int64)[:, None] * width
    more = tl.zeros((rows, columns), dtype=gain.dtype.element_ty)
    for first in range(0, width, columns):
        there = first + column < width
        now = tl.load(covered + first + column, mask=there, other=0.0)
        inside = (row < n)[:, None] & there[None, :]
        then = tl.load(start + first + column[None, :], mask=inside, other=0.0)
        more += tl.maximum(then - now[None, :], 0.0)
    free = tl.load(taken + row, mask=row < n, other=1) == 0
    tl.store(gain + row, tl.where(free, tl.sum(more, 1), -1.0), mask=row < n)


def covering(cover: Tensor, k: int) -> Tensor:
    """(k,) int64, the choice of `greedy_coverage` among (N, R), all gains anew in every step."""
    cover, (n, width) = cover.contiguous(), cover.shape
    covered, gain = cover.new_zeros(width), cover.new_empty(n)
    taken = torch.zeros(n, dtype=torch.int8, device=cover.device)
    chosen = torch.empty(k, dtype=torch.int64, device=cover.device)
    for step in range(k):
        with torch.cuda.device_of(cover):
            _gains[(triton.cdiv(n, 4),)](
                *(cover, covered, taken, gain, n, width), rows=4, columns=256
            )
        best = gain.argmax(0, keepdim=True)
        chosen[step : step + 1] = best
        taken.index_fill_(0, best, 1)
        covered = torch.maximum(covered, cover.index_select(0, best)[0])
    return chosen


@triton.jit
def _volume(gram, basis, chosen, n, k, width, share, block: tl.constexpr):
    place = tl.arange(0, block)
    whole = tl.load(gram + place * (n + 1), mask=place < n, other=NOTHING)
    left, used, floor = whole, 0, tl.max(whole, 0) * share
    for step in range(k):
        best = tl.argmax(left, 0, tie_break_left=True)
        length = tl.max(left, 0)
        if (used == width) | ((used > 0) & (length <= floor)):
            left, used = whole, 0
            best = tl.argmax(left, 0, tie_break_left=True)
            length = tl.max(left, 0)
            floor = length * share
        tl.store(chosen + step, best)
        row = tl.load(gram + best * n + place, mask=place < n, other=0.0)
        for past in range(used):
            known = tl.load(basis + past * n + place, mask=place < n, other=0.0)
            row -= known * tl.load(basis + past * n + best)
        row = tl.where(length > 0, row / tl.sqrt(tl.maximum(length, 1e-30)), 0.0)
        tl.store(basis + used * n + place, row, mask=place < n)
        tl.debug_barrier()  # other threads read what this one has written
        left = tl.where(place == best, NOTHING, left - row * row)
        whole = tl.where(place == best, NOTHING, whole)
        used += 1


def volume(x: Tensor, k: int, share: float) -> Tensor:
    """(k,) int64, the choice of `greedy_determinant` among the rows of (N, D).

    By Cholesky factors of the Gram matrix, where the reference takes directions out of the rows.

    Args:
        x: scaled by quality.
        k: how many.
        share: of the longest row, below which the rank is exhausted.
    """
    gram, n, block = x @ x.T, len(x), triton.next_power_of_2(len(x))
    chosen = torch.empty(k, dtype=torch.int64, device=x.device)
    basis = x.new_empty(min(k, x.shape[1]), n)
    with torch.cuda.device_of(x):
        _volume[(1,)](
            *(gram, basis, chosen, n, k, x.shape[1], share), block=block, num_warps=_warps(block)
        )
    return chosen


def _warps(block: int) -> int:
    return min(max(block // 256, 1), 16)
