"""VisPruner: important tokens by CLS attention, and different ones among the rest (2412.01818 v2).

Authors' repository: Theia-4869/VisPruner; the rule follows the port in ModelTC/LightCompress. Part
of the budget goes to the largest CLS attention. The rest, most attended first, is split into its
even and odd places; the even tokens most similar to an odd one leave, 8 a round, until the number
fits. The even tokens that stay, least similar last, then stand before the odd ones for the next
round.

Deviations: where the rest has an odd number, the even half has one more (the port fails there); no
round drops more tokens than the even half has; attention is that of the tower's last layer.
Cost: (N - k)/8 rounds that each compare N²/4 pairs, from one product made once up to N = 8192.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning import greedy
from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.rank import top
from mmtok.tokens import Query, Selection, VisualTokens

PER_ROUND = 8


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
        if not isinstance(self.important, int | float) or not 0 <= self.important <= 1:
            raise InputError(
                f"vispruner: important must be a number in [0, 1], got {self.important!r}"
            )

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
        """One product of the rest with itself, or one per round above 8192 tokens."""
        k = self.keep_count(n)
        left, goal = n - int(self.important * k), k - int(self.important * k)
        if k == n or goal == 0:
            return 0
        if left <= greedy.GRAM_LIMIT:
            return 2 * left * left * width
        total = 0
        while left > goal:
            total += 2 * (left - left // 2) * (left // 2) * width
            left -= min(PER_ROUND, left - goal, left - left // 2)
        return total


def thin(x: Tensor, k: int) -> Tensor:
    """(k,) places among (N, D) tokens after dropping those that have a near double."""
    order = torch.arange(len(x), device=x.device)
    if k == 0:
        return order[:0]
    x = greedy.unit(x)
    gram = x @ x.T if len(x) <= greedy.GRAM_LIMIT else None
    while len(order) > k:
        even, odd = order[::2], order[1::2]
        pairs = gram[even][:, odd] if gram is not None else x[even] @ x[odd].T
        drop = min(PER_ROUND, len(order) - k, len(even))
        by_likeness = top(pairs.amax(1), len(even))
        order = torch.cat([even[by_likeness[drop:]], odd])
    return order
