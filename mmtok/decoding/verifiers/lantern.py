"""LANTERN (arXiv 2410.03355) and LANTERN++ (2502.06352), lossy: neighbours lend probability.

The authors' code is jadohu/LANTERN; `mmtok.decoding.lossy` says where we deviate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.decoding import lossy
from mmtok.decoding.base import Verifier
from mmtok.decoding.rules import Level
from mmtok.decoding.tree import Kind
from mmtok.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Lantern(Verifier):
    """Accept a code with its neighbours' probability on top; other tokens get the exact rule.

    Attributes:
        near: (C, K) nearest codes of every code, from `mmtok.decoding.lossy.neighbours`.
        delta: probability that may be borrowed; above 1, (delta - 1) times the token's own.
        first: token id of code 0.
        published: clear the neighbours of a rejected code as the authors' code does.
    """

    accepts: ClassVar[frozenset[Kind]] = frozenset[Kind]({"det", "chain", "jacobi", "wor"})
    lossless: ClassVar[bool] = False

    near: Tensor | None = None
    delta: float = 0.1
    first: int = 0
    published: bool = False

    def __post_init__(self) -> None:
        if self.near is None or self.near.ndim != 2:
            raise InputError(
                "lantern: near must be a (codes, neighbours) tensor; "
                "make it with mmtok.decoding.lossy.neighbours(codebook, k)"
            )
        if not self.delta >= 0:
            raise InputError(f"lantern: delta must be at least 0, got {self.delta!r}")

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> Level:
        """See `lossy.lantern`."""
        near = self.near if self.near is not None else siblings.new_zeros(0, 0)
        return lossy.lantern(p, siblings, q, near, self.delta, self.first, self.published)

    def law(self, p: Tensor, q: Tensor) -> Tensor:
        """See `lossy.lantern_law`."""
        near = self.near if self.near is not None else torch.zeros(0, 0, dtype=torch.long)
        return lossy.lantern_law(p, q, near, self.delta, self.first, self.published)
