"""A random subset: the baseline every method has to beat.

Each picture has a draw of its own, which follows from the seed, its pixels and its place among the
pictures of its prompt: the same alone, in any batch and in any run, another for another picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item, seeded
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Random(Reducer):
    """Keep k tokens drawn uniformly.

    Attributes:
        seed: the draw depends on (seed, item id) alone, not on the batch; see `VisualTokens`.
    """

    seed: int = 0

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Give each valid token a uniform number and keep the k largest."""

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            generator = seeded(self.seed, tokens.item_ids[item])
            return torch.rand(len(valid), generator=generator).topk(k).indices.to(valid.device)

        return per_item(tokens, self.keep_count, choose)
