"""Which tokens stand in the same frame, and which in the same cell one frame before."""

from __future__ import annotations

import torch
from torch import Tensor


def split_frames(position: Tensor) -> list[Tensor]:
    """Places of the tokens of each frame, frames in order.

    Args:
        position: (N, 3) int64 (t, h, w) of each token.

    Returns:
        One ascending int64 tensor per frame that has tokens.
    """
    t = position[:, 0]
    return [(t == frame).nonzero().squeeze(1) for frame in sorted(set(t.tolist()))]


def previous(position: Tensor) -> Tensor:
    """(N,) place of the token in the same cell one frame before; -1 where there is none.

    Args:
        position: (N, 3) int64 (t, h, w) of each token, all different.
    """
    size = position.amax(0) + 1
    frame = int(size[1] * size[2])
    code = (position[:, 0] * size[1] + position[:, 1]) * size[2] + position[:, 2]
    place = torch.full((int(size[0]) * frame + frame,), -1, device=position.device)
    place[code + frame] = torch.arange(len(position), device=position.device)
    return place[code]
