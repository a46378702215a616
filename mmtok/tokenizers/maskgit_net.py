"""The decoder of MaskGIT's VQGAN, which makes TiTok's released codes pixels, under its own names.

After github.com/bytedance/1d-tokenizer, Apache-2.0 (from open-muse's port of MaskGIT, arXiv
2202.04200). Where a block changes the width, its shortcut reads what the block made and not what
went in: that is how the weights were trained, so it stays.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCKS = 2


class PixelCodebook(nn.Module):
    """Entries of the VQGAN, read softly: (B, entries, H, W) of logits to their mean vectors."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, width)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, width, H, W) of logits (B, entries, H, W)."""
        return torch.einsum("bkhw,kd->bdhw", logits.softmax(1), self.embedding.weight)


class PixelDecoder(nn.Module):
    """Vectors to pixels.

    Args:
        width: of the vectors.
        channels: of each resolution, from the pixels' down to the vectors'.
    """

    def __init__(self, width: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        last = channels[-1]
        self.conv_in = nn.Conv2d(width, last, 3, padding=1)
        self.mid = nn.ModuleList(_Block(last, last) for _ in range(_BLOCKS))
        inside = (*channels[1:], last)
        self.up = nn.ModuleList(_Level(inside[i], out, up=i > 0) for i, out in enumerate(channels))
        self.norm_out = nn.GroupNorm(32, channels[0], eps=1e-6)
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Pictures (B, 3, H', W') around [0, 1] of vectors (B, width, H, W)."""
        x = self.conv_in(vectors)
        for block in (*self.mid, *reversed(self.up)):
            x = block(x)
        made: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return made


class _Block(nn.Module):
    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, inside, eps=1e-6)
        self.conv1 = nn.Conv2d(inside, out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(32, out, eps=1e-6)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(out, out, 1, bias=False) if inside != out else None

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv1(F.silu(self.norm1(x)))
        made = self.conv2(F.silu(self.norm2(made)))
        return made + (x if self.nin_shortcut is None else self.nin_shortcut(made))


class _Level(nn.Module):
    """Blocks of one resolution, then twice the sides."""

    def __init__(self, inside: int, out: int, *, up: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(inside if i == 0 else out, out) for i in range(_BLOCKS))
        self.upsample_conv = nn.Conv2d(out, out, 3, padding=1) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is None:
            return x
        made: Tensor = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return made
