"""Grouped speculative decoding (GSD, arXiv 2508.07747), lossy: p and q summed over a group.

The authors' code is junhyukso/GSD; `mmtok.decoding.lossy` says where we deviate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.decoding import lossy, rules
from mmtok.decoding.base import Verifier, drawn_from
from mmtok.decoding.tree import Kind
from mmtok.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class GSD(Verifier):
    """Accept with the ratio of the group's mass under p and q; tokens outside get the exact rule.

    Attributes:
        codebook: (C, D); codes farther than `distance` leave the group. None: no such gate, and
            every token is judged by its group.
        ranks: half width of the window of similar rank.
        gap: largest difference of probability within the group.
        distance: squared L2 distance from which on codes are far.
        first: token id of code 0.
    """

    accepts: ClassVar[frozenset[Kind]] = frozenset[Kind]({"chain", "jacobi"})
    lossless: ClassVar[bool] = False

    codebook: Tensor | None = None
    ranks: int = 7
    gap: float = 0.15
    distance: float = 0.5
    first: int = 0

    def __post_init__(self) -> None:
        if self.ranks < 0 or not (self.gap > 0 and self.distance > 0):
            raise InputError(
                "gsd: need ranks >= 0, gap > 0 and distance > 0, "
                f"got {self.ranks}, {self.gap} and {self.distance}"
            )

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        """See `lossy.group`."""
        q, token = drawn_from(q), int(siblings[0])
        exact = rules.chain(p, siblings, q)
        far = None
        if self.codebook is not None:
            code = token - self.first
            if not 0 <= code < len(self.codebook):
                return exact
            far = torch.ones_like(p, dtype=torch.bool)
            away = (self.codebook - self.codebook[code]).square().sum(1)
            far[self.first : self.first + len(away)] = away >= self.distance
        return lossy.grouped(p, q, lossy.group(p, token, self.ranks, self.gap, far))

    def law(self, p: Tensor, q: Tensor) -> Tensor:
        """See `lossy.group_shares`."""
        book = None
        if self.codebook is not None:
            book = self.codebook.new_full((len(p), self.codebook.shape[1]), torch.nan)
            book[self.first : self.first + len(self.codebook)] = self.codebook
        accept = lossy.group_shares(p, q, self.ranks, self.gap, book, self.distance)
        return rules.one_draw(q, accept, rules.residual(p, q))
