"""Which tokens stand in the same frame, and which in the same cell of another frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmtok.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The N tokens of one item by frame and cell.

    Attributes:
        frame: (N,) int64 which of the T frames that have tokens each one stands in.
        cell: (N,) int64 which of the C cells that have tokens each one stands in.
        table: (T, C) int64 place of the token of each frame and cell, -1 where there is none.
    """

    frame: Tensor
    cell: Tensor
    table: Tensor

    @cached_property
    def frames(self) -> list[Tensor]:
        """Ascending places of the tokens of each frame."""
        sizes = torch.bincount(self.frame).tolist()
        return list(torch.split(self.frame.argsort(stable=True), sizes))

    def means(self, x: Tensor) -> Tensor:
        """(T, D) mean of the tokens of each frame, of (N, D) features; in fp32, fp64 stays."""
        exact = x.double()  # GPUs sum in any order: fp64 hides it
        sums = exact.new_zeros(len(self.table), x.shape[1]).index_add_(0, self.frame, exact)
        means = sums / torch.bincount(self.frame)[:, None]
        return means if x.dtype == torch.float64 else means.float()


def read_clip(tokens: VisualTokens, item: int, valid: Tensor) -> Clip:
    """The valid tokens of one item as a clip.

    Args:
        tokens: the batch.
        item: which of it.
        valid: (N,) int64 places of its valid tokens.
    """
    t, h, w = as_clip(tokens, item, valid).unbind(1)
    frame = torch.unique(t, return_inverse=True)[1]
    cell = torch.unique(h * (w.max() + 1) + w, return_inverse=True)[1]
    size = int(frame.max()) + 1, int(cell.max()) + 1
    table = torch.full(size, -1, dtype=torch.int64, device=valid.device)
    table[frame, cell] = torch.arange(len(valid), device=valid.device)
    return Clip(frame=frame, cell=cell, table=table)


def as_clip(tokens: VisualTokens, item: int, valid: Tensor) -> Tensor:
    """(N, 3) positions (t, h, w); the views of an AnyRes image are one frame of one row."""
    position = tokens.position[item, valid]
    if tokens.overview is not None and bool(tokens.overview[item].any()):
        position = torch.zeros_like(position)
        position[:, 2] = torch.arange(len(valid), device=position.device)
    return position


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
