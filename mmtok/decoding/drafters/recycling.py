"""Token Recycling (arXiv 2408.08696): the target's own runners-up, kept per token, make a tree.

The authors' code is Luowaterbi/TokenRecycling, and the tree is theirs ("2.2.2", 80 nodes). Theirs
starts from a table of zeros, which proposes token 0 everywhere; here an unknown successor proposes
nothing. Where a token comes twice in a tree, theirs leaves open which successors are kept; here
the accepted path wins, then the later node. Under guidance the successors are those of the guided
logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.decoding.base import Drafter, StepResult, check_nodes
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree, Kind
from mmtok.errors import InputError

# children of each node, level by level: ranks count from 0; nodes left out have none
_TREE = (
    *(8,),
    *(8, 4, 3, 2, 1, 1, 1, 1),
    *(8, 3, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0),
    *(5, 2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0),
    *(3, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0),
    *(2, 0, 0, 1),
)


@dataclass(kw_only=True)
class Recycling(Drafter):
    """Propose, below every node, the tokens that lately came out on top behind its token.

    The table (V, `successors`) int32 stays when the next batch begins.

    Attributes:
        successors: tokens kept per token.
        children: children of each node, breadth first; nodes left out have none.
    """

    successors: int = 8
    children: tuple[int, ...] = _TREE

    def __post_init__(self) -> None:
        fits = self.children and 0 <= min(self.children) <= max(self.children) <= self.successors
        if not fits or self.successors < 1:
            raise InputError(
                f"recycling: children must be counts up to successors={self.successors}, "
                f"got {self.children}"
            )
        check_nodes("recycling", sum(self.children))
        counts = enumerate(self.children)
        nodes = [(i, rank) for i, count in counts for rank in range(count)]
        if self.children[0] < 1 or len(self.children) > len(nodes) + 1:
            raise InputError(f"recycling: children names nodes that are not there: {self.children}")
        self.parent = [-1, *(i for i, _ in nodes)]
        self.rank = [-1, *(rank for _, rank in nodes)]
        self.table: Tensor | None = None

    @property
    def kind(self) -> Kind:
        """Chosen, not drawn."""
        return "det"

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Keep the table, unless it belongs to another vocabulary."""
        size = target.model.config.get_text_config().vocab_size
        if self.table is not None and len(self.table) != size:
            self.table = None

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """One tree per active row."""
        return [
            self._tree(row[-1]) if on and self.table is not None else DraftTree.root(row[-1])
            for row, on in zip(ids, active, strict=True)
        ]

    def filled(self, root: int) -> list[int]:
        """Tokens of the whole tree, -1 where nothing is known."""
        table = self.table
        tokens = [root]
        for parent, rank in zip(self.parent[1:], self.rank[1:], strict=True):
            known = table is not None and tokens[parent] >= 0
            tokens.append(int(table[tokens[parent], rank]) if known and table is not None else -1)
        return tokens

    def _tree(self, root: int) -> DraftTree:
        place, kept = {0: 0}, [(root, -1)]
        for node, token in enumerate(self.filled(root)):
            parent = place.get(self.parent[node])
            if node and token >= 0 and parent is not None:
                place[node] = len(kept)
                kept.append((token, parent))
        tokens, parents = zip(*kept, strict=True)
        return DraftTree(torch.tensor(tokens), torch.tensor(parents), "det")

    def observe(self, results: list[StepResult | None]) -> None:
        """Learn the successors of every node, rejected ones included, rows in order."""
        for result in results:
            if result is not None:
                self._learn(result)

    def _learn(self, result: StepResult) -> None:
        logits = result.logits
        if self.table is None:
            self.table = torch.full((logits.shape[1], self.successors), -1, dtype=torch.int32)
        count = min(self.successors, logits.shape[1])
        best = logits.topk(count).indices.to("cpu", torch.int32)
        tokens = result.tree.tokens.tolist()
        order = [*range(len(tokens)), 0, *result.verdict.path]
        last = {tokens[node]: node for node in order}
        self.table[list(last), :count] = best[list(last.values())]
