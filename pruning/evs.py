"""EVS, efficient video sampling: drop what has not changed since the last frame (arXiv 2510.14624).

Known from the serving engine vllm-project/vllm, which has it for video models. A token is as new as
it differs, in cosine distance, from the token in the same cell one frame before; the k newest stay.
The first frame is new altogether, as is any token without a predecessor.

Deviations: the authors never keep less than one frame, so a clip may exceed its budget and a still
is never reduced. Here the budget is exact: with k below one frame, the first frame is thinned
evenly (the rule of `stride`), and so is a still. The views of an AnyRes image are one still. The
share is rounded half up, not down. Clip by clip: positions of the survivors are the original ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.frames import as_clip, previous
from mmtok.pruning.greedy import unit
from mmtok.pruning.rank import top
from mmtok.tokens import Query, Selection, VisualTokens

NEW = 255.0  # more than any cosine distance


@dataclass(frozen=True, kw_only=True)
class EVS(Reducer):
    """Keep the k tokens that differ most from the frame before."""

    keep: int | float = 0.3

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Rank by change, earlier tokens first among equals."""

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            change = novelty(tokens.features[item, valid], as_clip(tokens, item, valid))
            new = (change == NEW).nonzero().squeeze(1)
            if k < len(new):
                step = torch.arange(k, device=new.device)
                return new[(2 * step + 1) * len(new) // (2 * k)]
            return top(change, k)

        return per_item(tokens, self.keep_count, choose)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """One product of two vectors per token."""
        return 2 * n * width if self.keep_count(n) < n else 0


def novelty(x: Tensor, position: Tensor) -> Tensor:
    """(N,) cosine distance of each token to the same cell one frame before; NEW without one.

    Args:
        x: (N, D) features.
        position: (N, 3) int64 (t, h, w).
    """
    x, before = unit(x), previous(position)
    other = x[before.clamp_min(0)]
    change = 1 - (x[:, None] @ other[:, :, None]).flatten()
    return change.masked_fill(before < 0, NEW)
