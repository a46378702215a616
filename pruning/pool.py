"""Average pooling of the feature grid: the baseline that merges by place alone.

Each frame, tile or view gets its share of the budget and is pooled into that many blocks, as close
to squares as the number allows: where rows x columns does not give it, some rows of blocks have one
block more, so the budget is exact. A block stands at its centre. Newline tokens hold no picture and
leave first.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.blocks import newlines_too, pool_views, split_views
from mmtok.pruning.merging import Merge, merge_per_item
from mmtok.pruning.rank import apportion
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Pool(Reducer):
    """Average neighbouring tokens into k blocks."""

    keep: int | float = 0.25

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Share the budget out by size, then pool."""

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            views, newline = split_views(tokens, item, valid)
            sizes = [len(view.places) for view in views]
            in_picture = min(k, sum(sizes))
            merge = pool_views(views, apportion(sizes, sizes, in_picture))
            return newlines_too(merge, newline, k - in_picture)

        return merge_per_item(tokens, self.keep_count, choose)
