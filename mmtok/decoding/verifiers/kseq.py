"""K-SEQ of SpecTr (arXiv 2310.15141), for independent draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmtok.decoding import rules
from mmtok.decoding.base import Verifier, drawn_from
from mmtok.decoding.tree import Kind


@dataclass(frozen=True, kw_only=True)
class KSeq(Verifier):
    """Accept with probability min(1, p / (rho q)), rho solved per node."""

    accepts: ClassVar[frozenset[Kind]] = frozenset[Kind]({"chain", "iid"})

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        """See `rules.kseq`."""
        return rules.kseq(p, siblings, drawn_from(q))
