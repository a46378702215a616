"""Typical acceptance of Medusa (arXiv 2401.10774), lossy.

The original takes the longest of all candidate paths, we take the first sibling that passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.decoding import lossy
from mmtok.decoding.base import Verifier
from mmtok.decoding.rules import Level, one_draw
from mmtok.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Typical(Verifier):
    """Accept a token above min(eps, alpha exp(-H)), H the entropy of the target in nats."""

    lossless: ClassVar[bool] = False

    eps: float = 0.3
    alpha: float = 0.09

    def __post_init__(self) -> None:
        if not (0 <= self.eps <= 1 and self.alpha >= 0):
            raise InputError(f"typical: eps in [0, 1], alpha >= 0, got {self.eps}, {self.alpha}")

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> Level:
        """See `lossy.typical`."""
        return lossy.typical(p, siblings, self.eps, self.alpha)

    def law(self, p: Tensor, q: Tensor) -> Tensor:
        """No draft has a say in what becomes of another."""
        accept, rest = self.level(p, torch.arange(len(p)), q)
        return one_draw(q, accept, rest)
