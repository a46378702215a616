"""VisPruner: important tokens by CLS attention, and different ones among the rest (2412.01818 v2).

Authors' repository: Theia-4869/VisPruner; the rule follows the port in ModelTC/LightCompress. Part
of the budget goes to the largest CLS attention. The rest, most attended first, is split into its
even and odd places; the even tokens most similar to an odd one leave, 8 a round, until the number
fits. The even tokens that stay, least similar last, then stand before the odd ones for the next
round.

Deviations: where the rest has an odd number, the even half has one more (the port fails there); no
round drops more tokens than the even half has; attention is that of the tower's last layer.
Cost: any two tokens may meet in some round, so the rule asks for N² similarities, a product of the
tokens with themselves, and not for N k. The nearest neighbours of every token are listed once, and
again whenever half of the tokens has left; the (N - k)/8 rounds look only into the heads of these
lists, and sort N/2 numbers, which makes N² log N small steps in all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.greedy import unit
from mmtok.pruning.rank import top
from mmtok.pruning.work import Work
from mmtok.tokens import Query, Selection, VisualTokens

PER_ROUND = 8
LISTED = 64  # neighbours of a token that are kept at hand
HEADS = (0, 4, 16, LISTED)  # and are looked at in parts: one in two is on the other side
RELIST = 2  # they are listed anew when so much fewer tokens are left


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

        work = Work()

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            order = top(attention[item, valid].float(), len(valid))
            first = int(self.important * k)
            rest = order[first:]
            x = tokens.features[item, valid[rest]]
            return torch.cat([order[:first], rest[thin(x, k - first, work)]])

        return replace(per_item(tokens, self.keep_count, choose), flops=work.flops)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """One product of the rest with itself per listing of neighbours; lists that run out and are
        made anew come on top.
        """
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


def thin(x: Tensor, k: int, work: Work) -> Tensor:
    """(k,) places among (N, D) tokens after dropping those that have a near double.

    Args:
        x: (N, D) features.
        k: how many stay, at most N.
        work: told of the products.
    """
    order = torch.arange(len(x), device=x.device)
    if k == 0:
        return order[:0]
    x = unit(x)
    near = None
    while len(order) > k:
        if near is None or len(order) < near.size / RELIST:
            near = Neighbours(x, order, work)
        even, odd = order[::2], order[1::2]
        by_likeness = top(near.likeness(even, odd), len(even))
        order = torch.cat([even[by_likeness[leaving(len(order), k) :]], odd])
    return order


class Neighbours:
    """The nearest neighbours of tokens, most similar first.

    Args:
        x: (N, D) rows of length 1 or 0.
        listed: (n,) int64, tokens that are compared with one another, 1024 at a time.
        work: told of the products.

    Attributes:
        size: how many tokens are listed.
    """

    def __init__(self, x: Tensor, listed: Tensor, work: Work) -> None:
        self.size, self.work, self.listed = len(listed), work, listed
        self.x = x[listed]
        self.number = listed.new_empty(len(x)).index_copy_(
            0, listed, torch.arange(self.size, device=x.device)
        )
        m = min(LISTED, self.size - 1)
        self.value = x.new_empty(self.size, m)
        self.place = listed.new_empty(self.size, m)
        for start in range(0, self.size, 1024):
            self._list(torch.arange(start, min(start + 1024, self.size), device=x.device))

    def _list(self, rows: Tensor, left: Tensor | None = None) -> Tensor:
        """List the neighbours of `rows` among those `left`; their similarities to all of them."""
        similar = self.work.product(self.x[rows], self.x.T)
        similar.scatter_(1, rows[:, None], -torch.inf)
        if left is not None:
            similar.masked_fill_(~left, -torch.inf)
        self.value[rows], self.place[rows] = similar.topk(self.value.shape[1], dim=1)
        return similar

    def likeness(self, tokens: Tensor, others: Tensor) -> Tensor:
        """(n,) similarity of each of `tokens` to the most similar of `others`.

        All tokens that are left are in one of the two.
        """
        rows, other = self.number[tokens], self.number[others]
        there = torch.zeros(self.size, dtype=torch.bool, device=rows.device)
        there[other] = True
        best = self.x.new_full((len(rows),), -torch.inf)
        lost = torch.arange(len(rows), device=rows.device)
        for start, end in pairwise(HEADS):
            best[lost] = self._first(rows[lost], there, slice(start, end))
            lost = lost[best[lost] == -torch.inf]
        if len(lost):  # none of those listed is among the others: look at all of them
            left = there.clone()
            left[rows] = True
            similar = self._list(rows[lost], left)
            best[lost] = similar.masked_fill_(~there, -torch.inf).amax(1)
        return best

    def _first(self, rows: Tensor, there: Tensor, columns: slice) -> Tensor:
        """(n,) similarity to the first listed neighbour that is `there`; -inf if none is."""
        if not self.value[:, columns].shape[1]:
            return self.x.new_full((len(rows),), -torch.inf)
        gone = ~there[self.place[:, columns][rows]]
        return self.value[:, columns][rows].masked_fill(gone, -torch.inf).amax(1)
