"""A draft: tokens in a tree, with how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from mmtok.errors import InputError

Kind = Literal["det", "chain", "iid", "wor", "jacobi"]
KINDS: frozenset[Kind] = frozenset(get_args(Kind))


@dataclass(frozen=True)
class DraftTree:
    """Draft tokens below the last token of a row.

    Attributes:
        tokens: (n,) int64. Node 0, the root, is the row's last token.
        parent: (n,) int64, -1 for the root; parents come before children, siblings in draw order.
        kind: "det", siblings chosen by a rule; "chain", one draw per node; "iid", independent
            draws; "wor", draws without replacement; "jacobi", one draw per node from a
            distribution of an earlier step.
        q: (n, V) float64, row i is what the children of node i were drawn from; None for "det".
            Rows of leaves are not read.

    Whether a draw is kept may depend on anything but the draw itself; otherwise no rule is exact
    except `deterministic` and `greedy`.

    Raises:
        InputError: the arrays do not fit together.
    """

    tokens: Tensor
    parent: Tensor
    kind: Kind
    q: Tensor | None = None

    def __post_init__(self) -> None:
        n, parents = len(self.tokens), self._parents
        if not n or len(parents) != n or parents[0] != -1:
            raise InputError("a draft tree needs a root with parent -1 and one parent per token")
        if not all(0 <= parent < node for node, parent in enumerate(parents[1:], 1)):
            raise InputError("a draft tree lists parents before their children, and one root")
        if (self.q is None) != (self.kind == "det") or (self.q is not None and len(self.q) != n):
            raise InputError("a draft tree has one row of q per node, and none if kind is 'det'")

    @cached_property
    def _parents(self) -> list[int]:
        parents: list[int] = self.parent.tolist()  # lists: trees are small, tensors are slow
        return parents

    @classmethod
    def root(cls, token: int) -> DraftTree:
        """Nothing proposed."""
        return cls(torch.tensor([token]), torch.tensor([-1]), "det")

    @classmethod
    def line(cls, tokens: list[int]) -> DraftTree:
        """One path of chosen tokens, root first."""
        return cls(torch.tensor(tokens), torch.arange(len(tokens)) - 1, "det")

    @cached_property
    def _children(self) -> list[list[int]]:
        below: list[list[int]] = [[] for _ in self._parents]
        for node, parent in enumerate(self._parents[1:], 1):
            below[parent].append(node)
        return below

    def children(self, node: int) -> list[int]:
        """Nodes below `node`, in draw order."""
        return self._children[node]

    @cached_property
    def _depths(self) -> list[int]:
        depths = [0]
        for parent in self._parents[1:]:
            depths.append(depths[parent] + 1)
        return depths

    @property
    def depth(self) -> Tensor:
        """(n,) int64, 0 for the root."""
        return torch.tensor(self._depths)

    @cached_property
    def sees(self) -> Tensor:
        """(n, n) bool: row i marks node i and its ancestors."""
        sees = torch.eye(len(self._parents), dtype=torch.bool)
        for node, parent in enumerate(self._parents[1:], 1):
            sees[node] |= sees[parent]
        return sees

    def path_to(self, node: int) -> list[int]:
        """Nodes from below the root down to `node`."""
        path = []
        while node:
            path.append(node)
            node = self._parents[node]
        return path[::-1]

    def limited(
        self, max_depth: int, eos: frozenset[int], vocabulary: int | None = None
    ) -> DraftTree:
        """What may be accepted.

        Without nodes deeper than `max_depth`, what follows an end of sequence, and tokens that
        the target cannot write, such as words of the prompt where it writes codes of an image.
        """
        tokens, size = self.tokens.tolist(), float("inf") if vocabulary is None else vocabulary
        kept, place = [0], {0: 0}
        for node, parent in enumerate(self._parents[1:], 1):
            ended = parent > 0 and tokens[parent] in eos
            fits = self._depths[node] <= max_depth and 0 <= tokens[node] < size
            if parent in place and fits and not ended:
                place[node] = len(kept)
                kept.append(node)
        if len(kept) == len(tokens):
            return self
        parents = [-1, *(place[self._parents[node]] for node in kept[1:])]
        q = None if self.q is None else self.q[kept]
        return DraftTree(self.tokens[kept], torch.tensor(parents), self.kind, q)
