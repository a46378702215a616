"""Every n-th token in raster order: the uniform baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Stride(Reducer):
    """Keep the tokens at floor((j + 1/2) n / k), j = 0 .. k-1: the middles of k equal stretches."""

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Choose by place alone."""

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            step = torch.arange(k, device=valid.device)
            return (2 * step + 1) * len(valid) // (2 * k)

        return per_item(tokens, self.keep_count, choose)
