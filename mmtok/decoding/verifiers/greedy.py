"""Follow the most likely token (exact for greedy decoding, drafts of every kind)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmtok.decoding import rules
from mmtok.decoding.base import Rows, Verdict, Verifier, follow
from mmtok.decoding.tree import DraftTree


@dataclass(frozen=True, kw_only=True)
class Greedy(Verifier):
    """Accept the argmax; ties go to the lowest id."""

    argmax: ClassVar[bool] = True

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        """See `rules.greedy`."""
        return rules.greedy(p, siblings)

    def verify(self, tree: DraftTree, probs: Rows, uniform: Callable[[], float]) -> Verdict:
        """The path of argmaxes."""
        return follow(tree, lambda node: int(probs(node).argmax()))
