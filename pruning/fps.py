"""Fewer frames: the baseline for clips, which keeps whole frames and drops the others.

As few frames as hold the budget stay, evenly spaced, with all their tokens; the budget is exact, so
each of them is thinned evenly by the few tokens that are too many. The tiles and views of a still
count as its frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.frames import split_frames
from mmtok.pruning.rank import apportion, evenly
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class FPS(Reducer):
    """Keep the tokens of evenly spaced frames."""

    keep: int | float = 0.25

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Choose frames, more of them until they hold the budget."""

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            frames = split_frames(tokens.position[item, valid])
            for count in range(max(k * len(frames) // len(valid), 1), len(frames) + 1):
                chosen = [frames[i] for i in evenly(len(frames), count).tolist()]
                sizes = [len(frame) for frame in chosen]
                if sum(sizes) >= k:
                    break
            quotas = apportion(sizes, sizes, k)
            thinned = [
                frame[evenly(len(frame), quota, frame.device)]
                for frame, quota in zip(chosen, quotas, strict=True)
            ]
            return torch.cat(thinned)

        return per_item(tokens, self.keep_count, choose)
