"""DivPrune: the subset whose closest pair is as far apart as possible (arXiv 2503.02175).

Authors' repository: vbdi/divprune. The max-min problem is solved greedily in cosine distance: first
the token farthest from its nearest neighbour, then always the token farthest from those chosen.

Deviations: the minima are updated, not recomputed, which gives the same set in O(N k) after the
first product; chosen tokens are marked, so duplicates are never chosen twice; the order of the
picture is kept; the budget is rounded half up, not half to even; positions stay the original ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.greedy import greedy_diverse, greedy_flops
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class DivPrune(Reducer):
    """Keep k tokens that are far apart from one another."""

    keep: int | float = 0.1

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Greedy max-min choice from the most isolated token on."""

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            return greedy_diverse(tokens.features[item, valid], k, None)

        return per_item(tokens, self.keep_count, choose)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """See `greedy_flops`."""
        k = self.keep_count(n)
        return greedy_flops(n, k, width, first_known=False) if k < n else 0
