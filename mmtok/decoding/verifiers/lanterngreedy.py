"""LANTERN (arXiv 2410.03355) for greedy decoding, lossy: the argmax may be a neighbour's.

The authors' code is jadohu/LANTERN. Of several accepted paths the longest is taken, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmtok.decoding import lossy
from mmtok.decoding.base import Rows, Verdict, Verifier
from mmtok.decoding.rules import Level
from mmtok.decoding.tree import KINDS, DraftTree, Kind
from mmtok.decoding.verifiers.lantern import Lantern
from mmtok.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class LanternGreedy(Lantern, Verifier):
    """Accept a code that is the argmax with its neighbours' probability on top; else the argmax."""

    accepts: ClassVar[frozenset[Kind]] = KINDS
    argmax: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.published:
            raise InputError("lanterngreedy: published changes sampling only, leave it out")

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> Level:
        """See `lossy.lantern_greedy`."""
        near = self.near if self.near is not None else siblings.new_zeros(0, 0)
        return lossy.lantern_greedy(p, siblings, near, self.delta, self.first)

    def verify(self, tree: DraftTree, probs: Rows, uniform: Callable[[], float]) -> Verdict:
        """The longest accepted path, the first of several."""
        path = self._longest(tree, probs, 0)
        return Verdict(path, self.bonus(probs(path[-1] if path else 0), uniform))

    def _longest(self, tree: DraftTree, probs: Rows, node: int) -> list[int]:
        children = tree.children(node)
        if not children:
            return []
        accept = self.level(probs(node), tree.tokens[children], None).accept
        found = (
            [child, *self._longest(tree, probs, child)]
            for child, hit in zip(children, accept, strict=True)
            if hit > 0
        )
        return max(found, key=len, default=[])
