"""How a draft model's tree grows: which nodes need a forward next, and what their rows add.

`Branching`: a fixed number of children per level, RSD-C (arXiv 2402.14160); one each is a chain;
with replacement, SpecTr (2310.15141).
`Beam`: stochastic beam search, RSD-S (same paper; perturbed scores after arXiv 1903.06059).
`Heap`: the node most likely to be accepted first, DySpec (arXiv 2410.11744).
No code of the two papers was read. Siblings are draws without replacement, in draw order, and what
is kept depends on scores that do not tell which token was drawn, so recursive rejection is exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmtok.decoding.rules import EPSILON, draw
from mmtok.decoding.tree import DraftTree, Kind

Noise = Callable[[int, int, int], Tensor]


class Growth:
    """A tree under way.

    Attributes:
        wanted: nodes whose row (V,) is needed next; none when the tree is done.
        levels: how deep the tree gets at most.
    """

    def __init__(self, root: int, levels: int) -> None:
        self.levels = levels
        self.tokens, self.parent, self.depth = [root], [-1], [0]
        self.wanted = [0]
        self._rows: dict[int, Tensor] = {}

    def feed(self, rows: Sequence[Tensor]) -> None:
        """Take the rows (V,) float64 of the wanted nodes, in their order."""
        raise NotImplementedError

    def ancestors(self, node: int) -> list[int]:
        """Nodes above `node`, nearest first, the root last."""
        found = []
        while (node := self.parent[node]) >= 0:
            found.append(node)
        return found

    def tree(self, kind: Kind) -> DraftTree:
        """The finished tree."""
        tokens, parent = torch.tensor(self.tokens), torch.tensor(self.parent)
        if kind == "det":
            return DraftTree(tokens, parent, kind)
        q = torch.zeros(len(tokens), len(next(iter(self._rows.values()), [0])))
        q = q.double()
        for node, row in self._rows.items():
            q[node] = row
        return DraftTree(tokens, parent, kind, q)

    def _add(self, parent: int, token: int) -> int:
        self.tokens.append(token)
        self.parent.append(parent)
        self.depth.append(self.depth[parent] + 1)
        return len(self.tokens) - 1


class Branching(Growth):
    """branching[d] children for every node of depth d.

    Args:
        root: the row's last token.
        branching: children per level.
        noise: (level, rank within the level, V) to Gumbel noise (V,); None takes the most likely.
        stop: nodes whose most likely child is below this probability get none.
        replace: independent draws, equal ones allowed (SpecTr).
    """

    def __init__(
        self,
        root: int,
        branching: Sequence[int],
        noise: Noise | None,
        *,
        stop: float = 0.0,
        replace: bool = False,
    ) -> None:
        super().__init__(root, len(branching))
        self._branching, self._noise = branching, noise
        self._stop, self._replace = stop, replace

    def feed(self, rows: Sequence[Tensor]) -> None:
        """Add the children of a level."""
        fresh = []
        for rank, (node, q) in enumerate(zip(self.wanted, rows, strict=True)):
            if float(q.max()) < self._stop:
                continue
            self._rows[node] = q
            fresh += [self._add(node, token) for token in self._children(node, rank, q)]
        deeper = fresh and self.depth[fresh[0]] < self.levels
        self.wanted = fresh if deeper else []

    def _children(self, node: int, rank: int, q: Tensor) -> list[int]:
        depth, score = self.depth[node], q.log()
        count = self._branching[depth]
        if self._noise is None or not self._replace:
            if self._noise is not None:
                score = score + self._noise(depth, rank, len(q))
            return [int(t) for t in score.topk(min(count, int((q > 0).sum()))).indices]
        return [int((score + self._noise(depth, rank, len(q))).argmax()) for _ in range(count)]


class Beam(Growth):
    """The `width` best of every level by perturbed score, `levels` deep.

    Attributes:
        logp: log-probability of each node's path.
        score: perturbed log-probability; among the children of a node the highest is the node's.
    """

    def __init__(self, root: int, width: int, levels: int, noise: Noise) -> None:
        super().__init__(root, levels)
        self._width, self._noise = width, noise
        self.logp, self.score = [0.0], [0.0]

    def feed(self, rows: Sequence[Tensor]) -> None:
        """Add one level."""
        paths, scores = [], []
        for rank, (node, q) in enumerate(zip(self.wanted, rows, strict=True)):
            self._rows[node] = q
            path = self.logp[node] + q.log()
            paths.append(path)
            drawn = path + self._noise(self.depth[node], rank, len(q))
            scores.append(_conditioned(drawn, self.score[node]))
        flat, size, fresh = torch.cat(scores), len(rows[0]), []
        logp = torch.cat(paths)
        for at in flat.argsort(descending=True, stable=True)[: self._width].tolist():
            if flat[at] == -torch.inf:
                break
            fresh.append(self._add(self.wanted[at // size], at % size))
            self.logp.append(float(logp[at]))
            self.score.append(float(flat[at]))
        self.wanted = fresh if fresh and self.depth[fresh[0]] < self.levels else []


def _conditioned(drawn: Tensor, top: float) -> Tensor:
    """Gumbel scores (V,) shifted so that their maximum is `top`, as if it had been known before."""
    t = top - drawn + (-(drawn - drawn.max()).exp()).log1p()
    return top - t.clamp(min=0) - (-t.abs()).exp().log1p()


class Heap(Growth):
    """One node at a time, the likeliest to be accepted first, until `budget` nodes are drawn.

    Whether a further sibling is drawn is settled before its token is.
    """

    def __init__(self, root: int, budget: int, levels: int, uniform: Callable[[], float]) -> None:
        super().__init__(root, levels)
        self._budget, self._uniform = budget, uniform
        self._heap: list[tuple[float, int, int, Tensor | None]] = []
        self._pushed, self._value = 0, 1.0

    def feed(self, rows: Sequence[Tensor]) -> None:
        """Draw below the wanted node, then on until a node without a row comes up."""
        node, value = self.wanted[0], self._value
        left: Tensor | None = rows[0]
        self._rows[node] = rows[0]
        self.wanted = []
        while left is not None:
            self._draw(node, value, left)
            if len(self.tokens) > self._budget or not self._heap:
                return
            negative, _, node, left = heapq.heappop(self._heap)
            value = -negative
        self.wanted, self._value = [node], value

    def _draw(self, node: int, value: float, left: Tensor) -> None:
        token = draw(left, self._uniform())
        share = float(left[token])
        child = self._add(node, token)
        if self.depth[child] < self.levels:
            self._push(value * share, child, None)
        rest = left.clone()
        rest[token] = 0
        if (mass := rest.sum()) > EPSILON:
            self._push(value * (1 - share), node, rest / mass)

    def _push(self, value: float, node: int, left: Tensor | None) -> None:
        heapq.heappush(self._heap, (-value, self._pushed, node, left))
        self._pushed += 1
