"""Matrix products that note what they cost, for methods whose work depends on content."""

from __future__ import annotations

from torch import Tensor


class Work:
    """Products, and the floating point operations spent on them so far.

    Attributes:
        flops: 1 multiply-accumulate = 2.
    """

    def __init__(self) -> None:
        self.flops = 0

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """(M, N) product of (M, D) and (D, N)."""
        self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return a @ b

    def pairs(self, a: Tensor, b: Tensor) -> Tensor:
        """(N,) products of the rows of (N, D) with the same rows of (N, D)."""
        self.flops += 2 * a.numel()
        return (a[:, None] @ b[:, :, None]).flatten()
