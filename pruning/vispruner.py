"""VisPruner: important tokens by CLS attention, and different ones among the rest (2412.01818 v2).

Authors' repository: Theia-4869/VisPruner; the rule follows the port in ModelTC/LightCompress. Part
of the budget goes to the largest CLS attention. The rest, most attended first, is split into its
even and odd places; the even tokens most similar to an odd one leave, 8 a round, until the number
fits. The even tokens that stay, least similar last, then stand before the odd ones for the next
round.

Deviations: where the rest has an odd number, the even half has one more (the port fails there); no
round drops more tokens than the even half has; attention is that of the tower's last layer.
Cost: the nearest neighbours of every token are listed once, and again when a third of the tokens is
left; each of the (N - k)/8 rounds looks only into these lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.greedy import unit
from mmtok.pruning.rank import top
from mmtok.tokens import Query, Selection, VisualTokens

PER_ROUND = 8
LISTED = 32  # neighbours of a token that are kept at hand
RELIST = 3  # they are listed anew when so much fewer tokens are left; one of 300 then has none


@dataclass(frozen=True, kw_only=True)
class VisPruner(Reducer):
    """Keep important tokens and, for the rest of the budget, different ones.

    Attributes:
        important: share of the budget that attention decides, rounded down.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    keep: int | float = 0.25
    important: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("important", 0, 1)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Top attention first, then thin out the others."""
        attention = tokens.cls_attention
        assert attention is not None, "select() refuses tokens without it"

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            order = top(attention[item, valid].float(), len(valid))
            first = int(self.important * k)
            rest = order[first:]
            x = tokens.features[item, valid[rest]]
            return torch.cat([order[:first], rest[thin(x, k - first)]])

        return per_item(tokens, self.keep_count, choose)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """One product of the rest with itself per listing of neighbours."""
        k = self.keep_count(n)
        left, goal = n - int(self.important * k), k - int(self.important * k)
        total = listed = 0
        while k < n and 0 < goal < left:
            if left < listed / RELIST or not listed:
                listed = left
                total += 2 * left * left * width
            left -= leaving(left, goal)
        return total


def leaving(n: int, k: int) -> int:
    """How many of n tokens a round drops on the way to k."""
    return min(PER_ROUND, n - k, n - n // 2)


def thin(x: Tensor, k: int) -> Tensor:
    """(k,) places among (N, D) tokens after dropping those that have a near double."""
    order = torch.arange(len(x), device=x.device)
    if k == 0:
        return order[:0]
    x = unit(x)
    near = None
    while len(order) > k:
        if near is None or len(order) < near.size / RELIST:
            near = Neighbours.of(x, order)
        even, odd = order[::2], order[1::2]
        by_likeness = top(near.likeness(even, odd), len(even))
        order = torch.cat([even[by_likeness[leaving(len(order), k) :]], odd])
    return order


@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of tokens, most similar first.

    Attributes:
        x: (N, D) rows of length 1 or 0.
        value: (N, m) similarities; rows of tokens that are not listed hold nothing of use.
        place: (N, m) int64 which tokens.
        size: how many tokens are listed.
    """

    x: Tensor
    value: Tensor
    place: Tensor
    size: int

    @classmethod
    def of(cls, x: Tensor, listed: Tensor) -> Neighbours:
        """Compare the tokens `listed` (n,) int64 with one another, 1024 at a time."""
        m = min(LISTED, len(listed) - 1)
        value = x.new_zeros(len(x), m)
        place = torch.zeros_like(value, dtype=torch.int64)
        others = x[listed].T
        for start in range(0, len(listed), 1024):
            rows = listed[start : start + 1024]
            similar = x[rows] @ others
            own = torch.arange(start, start + len(rows), device=x.device)
            similar.scatter_(1, own[:, None], -torch.inf)
            value[rows], found = similar.topk(m, dim=1)
            place[rows] = listed[found]
        return cls(x, value, place, len(listed))

    def likeness(self, tokens: Tensor, others: Tensor) -> Tensor:
        """(n,) similarity of each of `tokens` to the most similar of `others`."""
        there = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        there[others] = True
        found = self.value[tokens].masked_fill_(~there[self.place[tokens]], -torch.inf)
        best = found.amax(1)
        lost = (best == -torch.inf).nonzero().squeeze(1)
        if len(lost):  # none of those listed is among the others: look at all of them
            best[lost] = (self.x[tokens[lost]] @ self.x[others].T).amax(1)
        return best
