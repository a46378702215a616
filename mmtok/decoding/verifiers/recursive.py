"""Recursive rejection sampling: RSD (arXiv 2402.14160), for draws without replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmtok.decoding import rules
from mmtok.decoding.base import Verifier, drawn_from
from mmtok.decoding.tree import Kind


@dataclass(frozen=True, kw_only=True)
class Recursive(Verifier):
    """Accept siblings one by one, each against what the rejected ones left."""

    accepts: ClassVar[frozenset[Kind]] = frozenset[Kind]({"chain", "jacobi", "wor"})

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        """See `rules.recursive`."""
        return rules.recursive(p, siblings, drawn_from(q))
