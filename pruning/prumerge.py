"""LLaVA-PruMerge: tokens that stand out in CLS attention, with their neighbours (arXiv 2403.15388).

Authors' repository: 42Shawn/LLaVA-PruMerge. Tokens with the largest CLS attention
are selected. Each takes in the 32 tokens whose keys are most similar to its own, weighted by their
attention; one more token gathers all that were not selected. In the paper outliers above
Q3 + 1.5 IQR decide how many (`adaptive=True`). `plus` adds evenly spaced tokens, about three per
outlier.

Deviations: the budget counts the extra token, which stands where the most attended of the others
stood, and by default it is exact. Slots are weighted means; the released code adds up without
dividing (`compat="repo"`), so its extra token is shorter than any other. Quartiles are those of one
picture, not of the batch; the order of the picture is kept; fewer than 33 tokens work. Keys and
attention are those of the tower's last layer, heads apart; merging happens behind the projector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge, merge_per_item
from mmtok.pruning.rank import evenly, top
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class PruMerge(Reducer):
    """Keep the most attended tokens, merged with tokens like them, and one for all others.

    Attributes:
        adaptive: the number of outliers decides how many tokens stay, `keep` is the most.
        plus: spread three quarters of the selected tokens evenly over the picture.
        neighbours: how many tokens each selected one takes in.
        compat: "repo" for the released code's sums in place of means.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "keys"})

    keep: int | float = 0.25
    adaptive: bool = False
    plus: bool = False
    neighbours: int = 32
    compat: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("neighbours")
        if self.adaptive:
            self.let_content_decide()

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Select, then gather neighbours and the rest."""
        attention, keys = tokens.cls_attention, tokens.keys
        assert attention is not None, "select() refuses tokens without it"
        assert keys is not None, "select() refuses tokens without them"

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            seen = attention[item, valid].float()
            selected, extra = self.selected(seen, k)
            near = nearest(keys[item, valid], selected, self.neighbours, rows=max(k - 1, 1))
            return self._merge(seen, selected, extra, near)

        return merge_per_item(tokens, self.keep_count, choose)

    def selected(self, seen: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Places of the selected tokens, and of the token that stands for the others, if any.

        Args:
            seen: (N,) CLS attention.
            k: budget, the token for the others included; below N.

        Returns:
            Ascending int64 places, and none or one of the rest.
        """
        order = top(seen, len(seen))
        chosen = self._standing_out(seen, order) if self.adaptive else order
        if len(chosen) >= k:
            many = max(k - 1, 1)
            chosen = spread(order, many) if self.plus else order[:many]
        rest = order[~torch.isin(order, chosen)]
        return chosen.sort().values, rest[: int(k > 1)]

    def _standing_out(self, seen: Tensor, order: Tensor) -> Tensor:
        low, high = torch.quantile(seen, seen.new_tensor([0.25, 0.75]))
        outliers = max(int((seen > high + 1.5 * (high - low)).sum()), 1)
        if not self.plus:
            return order[:outliers]
        step = max(len(seen) // outliers // 3, 1)
        chosen = torch.zeros_like(seen, dtype=torch.bool)
        chosen[order[:outliers]] = True
        chosen[0 : len(seen) - 1 : step] = True
        return chosen.nonzero().squeeze(1)

    def _merge(self, seen: Tensor, selected: Tensor, extra: Tensor, near: Tensor) -> Merge:
        kept = torch.cat([selected, extra]).sort().values
        rest = torch.ones_like(seen, dtype=torch.bool).index_fill(0, selected, False)
        others = rest.nonzero().squeeze(1) if len(extra) else extra
        weights = torch.cat([torch.ones_like(seen[selected])[:, None], seen[near]], 1)
        share = seen[others]
        if self.compat == "paper":
            weights = weights / weights.sum(1, keepdim=True)
            total = share.sum()
            share = share / total if total > 0 else torch.full_like(share, 1 / max(len(share), 1))
        source = torch.cat([torch.cat([selected[:, None], near], 1).flatten(), others])
        place = torch.cat([selected.repeat_interleave(weights.shape[1]), extra.expand(len(others))])
        slot = torch.searchsorted(kept, place)
        return kept, (source, slot, torch.cat([weights.flatten(), share]))

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """Keys of as many tokens as may be selected, times all keys."""
        k = self.keep_count(n)
        return 2 * max(k - 1, 1) * n * key_width if k < n else 0


def spread(order: Tensor, k: int) -> Tensor:
    """(k,) places: a quarter of them, rounded up, the first in `order`; the others evenly spaced.

    Args:
        order: (N,) all places, most important first.
        k: how many.
    """
    first = order[: -(-k // 4)]
    rest = order[len(first) :].sort().values
    return torch.cat([first, rest[evenly(len(rest), k - len(first), order.device)]])


def nearest(keys: Tensor, selected: Tensor, count: int, *, rows: int) -> Tensor:
    """(S, m) the m = min(count, N - 1) tokens whose keys are most similar to each selected one's.

    Args:
        keys: (N, Dk).
        selected: (S,) places.
        count: how many; the token itself is not among them.
        rows: similarities are computed for so many tokens, so that the cost is known beforehand.
    """
    keys = unit(keys)
    others = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    others[selected] = False
    asked = torch.cat([selected, others.nonzero().squeeze(1)])[:rows]
    similar = (keys[asked] @ keys.T)[: len(selected)]
    similar = similar.scatter(1, selected[:, None], -torch.inf)
    return similar.topk(min(count, len(keys) - 1), dim=1).indices
