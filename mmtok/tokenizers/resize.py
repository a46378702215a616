"""Pictures of any size for tokenizers of one size, or of sides that are multiples of a step."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def to_size(pictures: Tensor, height: int, width: int) -> Tensor:
    """Pictures (B, C, H, W) scaled to (B, C, height, width); as they are if they fit already."""
    if pictures.shape[-2:] == (height, width):
        return pictures
    return F.interpolate(
        pictures, size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )


def to_multiple(pictures: Tensor, step: int) -> Tensor:
    """Pictures filled up at the right and below with their last pixels, to multiples of `step`."""
    height, width = pictures.shape[-2:]
    return F.pad(pictures, (0, -width % step, 0, -height % step), mode="replicate")
