"""VidCom2: more tokens for frames that stand out, and the tokens that stand out (arXiv 2505.14454).

Authors' repository: xuyang-liu16/VidCom2. On the half of the channels that varies least, each token
is compared with the mean of its clip and the mean of its frame by a sum of five Gaussian kernels.
Frames far from the clip's mean get more of the budget; the tokens least like both means stay.

Deviations: the budget is exact. The authors' shares, 1 + p - mean(p) of the even share with p the
softmax of the frames' scores at temperature 0.01, are shared out by largest remainder with no
frame above its size, where they round each frame by itself and keep at least one token of each. The
tiles and views of a still count as its frames. Positions and order stay the original ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.frames import split_frames
from mmtok.pruning.greedy import unit
from mmtok.pruning.rank import apportion, top
from mmtok.tokens import Query, Selection, VisualTokens

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
TEMPERATURE = 0.01


@dataclass(frozen=True, kw_only=True)
class VidCom2(Reducer):
    """Keep the tokens least like the mean of their clip and of their frame."""

    keep: int | float = 0.25

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Share the budget out among frames, then rank inside each."""

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            frames = split_frames(tokens.position[item, valid])
            in_clip, in_frame = likeness(tokens.features[item, valid], frames)
            unusual = torch.stack([-in_clip[frame].mean() for frame in frames])
            p = ((unusual - unusual.max()) / TEMPERATURE).softmax(0)
            sizes = [len(frame) for frame in frames]
            shares = (1 + p - p.mean()).tolist()
            weights = [share * size for share, size in zip(shares, sizes, strict=True)]
            quotas = apportion(weights, sizes, k)
            score = -(in_clip + in_frame)
            chosen = [
                frame[top(score[frame], quota)] for frame, quota in zip(frames, quotas, strict=True)
            ]
            return torch.cat(chosen)

        return per_item(tokens, self.keep_count, choose)


def likeness(x: Tensor, frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(N,) similarity of each token to the mean of its clip, and to the mean of its frame.

    Args:
        x: (N, D) features.
        frames: places of the tokens of each frame.
    """
    x = x if x.dtype == torch.float64 else x.float()
    steady = top(-x.var(0, correction=0), max(x.shape[1] // 2, 1))
    x = unit(x[:, steady])
    in_clip, in_frame = _kernel(x, x.mean(0)), x.new_zeros(len(x))
    for frame in frames:
        in_frame[frame] = _kernel(x[frame], x[frame].mean(0))
    return in_clip, in_frame


def _kernel(x: Tensor, centre: Tensor) -> Tensor:
    distance = (x - centre).square().sum(1)
    kernels = [(-distance / (2 * width)).exp() for width in WIDTHS]
    return torch.stack(kernels).sum(0)
