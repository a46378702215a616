"""Draw from the target and follow the draft if it was hit (exact, drafts of every kind)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmtok.decoding import rules
from mmtok.decoding.base import Verifier


@dataclass(frozen=True, kw_only=True)
class Deterministic(Verifier):
    """Accept each sibling with its own probability under the target."""

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        """See `rules.deterministic`."""
        return rules.deterministic(p, siblings)
