"""The centres of a coarser grid: the uniform baseline in two dimensions.

The blocks of `pool`, but the token at a block's centre stays as it is. Where `stride` walks along
the rows and may take one column only, this one spreads over both axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.blocks import pool_views, split_views
from mmtok.pruning.rank import apportion
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Grid(Reducer):
    """Keep the tokens at the centres of k blocks."""

    keep: int | float = 0.25

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Share the budget out by size, then take the centres."""

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            views, newline = split_views(tokens, item, valid)
            sizes = [len(view.places) for view in views]
            in_picture = min(k, sum(sizes))
            centres = pool_views(views, apportion(sizes, sizes, in_picture))[0]
            return torch.cat([centres, newline[: k - in_picture]])

        return per_item(tokens, self.keep_count, choose)
