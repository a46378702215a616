"""Draw from the target and follow the draft if it was hit (exact, drafts of every kind)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mmtok.decoding import rules
from mmtok.decoding.base import Rows, Verdict, Verifier, follow
from mmtok.decoding.tree import DraftTree


@dataclass(frozen=True, kw_only=True)
class Deterministic(Verifier):
    """Accept each sibling with its own probability under the target."""

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        """See `rules.deterministic`."""
        return rules.deterministic(p, siblings)

    def verify(self, tree: DraftTree, probs: Rows, uniform: Callable[[], float]) -> Verdict:
        """One draw per node, which is the same law as trying one sibling after another."""
        return follow(tree, lambda node: rules.draw(probs(node), uniform()))
