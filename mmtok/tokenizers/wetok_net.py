"""The convolutional encoder and decoder of WeTok and Open-MAGVIT2, under their published names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.tokenizers.norms import GroupNorm


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(32, channels, eps=1e-6)


def _conv(inside: int, out: int, size: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inside, out, size, stride=stride, padding=size // 2, bias=bias)


class ResBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm x))))); x is projected where the width changes."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inside), _conv(inside, out, 3, bias=False)
        self.norm2, self.conv2 = _norm(out), _conv(out, out, 3, bias=False)
        self.nin_shortcut = _conv(inside, out, 1, bias=False) if inside != out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inside, H, W) to (B, out, H, W)."""
        made = self.conv1(F.silu(self.norm1(x)))
        made = self.conv2(F.silu(self.norm2(made)))
        done: Tensor = made + (x if self.nin_shortcut is None else self.nin_shortcut(x))
        return done


class _Upsample(nn.Module):
    """Twice the sides. Channels are (row, column, channel); depth-to-space has channel first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, 4 * channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        made = self.conv1(x).reshape(b, 4, c, h, w).transpose(1, 2).reshape(b, 4 * c, h, w)
        return F.pixel_shuffle(made, 2)


class _Level(nn.Module):
    """Blocks of one resolution, and what leads to the next."""

    def __init__(
        self, inside: int, out: int, blocks: int, *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(out if place else inside, out) for place in range(blocks)
        )
        self.downsample = _conv(out, out, 3, stride=2) if down else None
        self.upsample = _Upsample(out) if up else None

    def forward(self, x: Tensor) -> Tensor:
        for step in (*self.block, self.downsample, self.upsample):
            x = x if step is None else step(x)
        return x


class _AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift follow deviation and mean of the code over all positions."""

    def __init__(self, code: int, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Linear(code, channels), nn.Linear(code, channels)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        flat = code.flatten(2)
        # Of a single position the reference's unbiased variance is 0 / 0.
        spread = (flat.var(-1, correction=min(1, flat.shape[-1] - 1)) + 1e-6).sqrt()
        scale, shift = self.gamma(spread), self.beta(flat.mean(-1))
        made = torch.group_norm(x, 32, eps=1e-6) * scale[..., None, None]
        done: Tensor = made + shift[..., None, None]
        return done


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, code, H / f, W / f), f = 2^(levels - 1)."""

    def __init__(self, width: int, mult: tuple[int, ...], blocks: int, code: int) -> None:
        super().__init__()
        self.conv_in = _conv(3, width, 3, bias=False)
        self.down = nn.ModuleList()
        inside = width
        for place, factor in enumerate(mult):
            down = place < len(mult) - 1
            self.down.append(_Level(inside, inside := width * factor, blocks, down=down))
        self.mid_block = nn.ModuleList(ResBlock(inside, inside) for _ in range(blocks))
        self.norm_out, self.conv_out = _norm(inside), _conv(inside, code, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Encode."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        for block in self.mid_block:
            x = block(x)
        done: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return done


class Decoder(nn.Module):
    """Codes (B, code, h, w) to pictures (B, 3, h f, w f) in [-1, 1].

    With `noise` the first convolution reads as many channels of Gaussian noise beside the code.
    """

    def __init__(
        self, width: int, mult: tuple[int, ...], blocks: int, code: int, noise: bool
    ) -> None:
        super().__init__()
        inside = width * mult[-1]
        self.conv_in = _conv(2 * code if noise else code, inside, 3)
        self.mid_block = nn.ModuleList(ResBlock(inside, inside) for _ in range(blocks))
        levels, norms = [], []
        for place in reversed(range(len(mult))):
            norms.append(_AdaptiveNorm(code, inside))
            levels.append(_Level(inside, inside := width * mult[place], blocks, up=place > 0))
        self.up, self.adaptive = nn.ModuleList(levels[::-1]), nn.ModuleList(norms[::-1])
        self.norm_out, self.conv_out = _norm(inside), _conv(inside, 3, 3)

    def forward(self, code: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode; `noise` has the shape of the code."""
        x: Tensor = self.conv_in(code if noise is None else torch.cat([code, noise], dim=1))
        for block in self.mid_block:
            x = block(x)
        for norm, level in zip(reversed(self.adaptive), reversed(self.up), strict=True):
            x = level(norm(x, code))
        done: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return done
