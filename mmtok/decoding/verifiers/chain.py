"""Speculative sampling, one draw per node (arXiv 2211.17192, 2302.01318)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmtok.decoding import rules
from mmtok.decoding.base import Verifier, drawn_from
from mmtok.decoding.tree import Kind


@dataclass(frozen=True, kw_only=True)
class Chain(Verifier):
    """Accept with probability min(1, p/q)."""

    accepts: ClassVar[frozenset[Kind]] = frozenset[Kind]({"chain", "jacobi"})

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        """See `rules.chain`."""
        return rules.chain(p, siblings, drawn_from(q))
