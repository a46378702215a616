"""The convolutional autoencoder in front of latent models, under the names that diffusers uses.

Four resolutions of residual blocks with attention in the middle, as in latent diffusion
(arXiv 2112.10752). Encoding gives the mean of the posterior, not a sample: the same picture has the
same latent.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class _Resnet(nn.Module):
    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inside), nn.Conv2d(inside, out, 3, padding=1)
        self.norm2, self.conv2 = _norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inside, out, 1) if inside != out else None

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv1(F.silu(self.norm1(x)))
        made = self.conv2(F.silu(self.norm2(made)))
        done: Tensor = made + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return done


class _Attention(nn.Module):
    """One head over all positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.group_norm = _norm(width)
        self.to_q, self.to_k = nn.Linear(width, width), nn.Linear(width, width)
        self.to_v, self.to_out = nn.Linear(width, width), nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        flat = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]
        mixed = F.scaled_dot_product_attention(self.to_q(flat), self.to_k(flat), self.to_v(flat))
        made = self.to_out[0](mixed[:, 0]).transpose(1, 2)
        done: Tensor = x + made.view_as(x)
        return done


class _Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(width, width), _Resnet(width, width)])
        self.attentions = nn.ModuleList([_Attention(width)])

    def forward(self, x: Tensor) -> Tensor:
        for step in (self.resnets[0], self.attentions[0], self.resnets[1]):
            x = step(x)
        return x


class _Sampler(nn.Module):
    """Half the sides, filled up at the right and below only; or twice the sides."""

    def __init__(self, width: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(width, width, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0)
        done: Tensor = self.conv(x)
        return done


class _Level(nn.Module):
    def __init__(
        self, inside: int, out: int, blocks: int, *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(out if i else inside, out) for i in range(blocks))
        if down:
            self.downsamplers = nn.ModuleList([_Sampler(out, down=True)])
        if up:
            self.upsamplers = nn.ModuleList([_Sampler(out, down=False)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            for step in part.children():
                x = step(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, channels: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _Level(widths[max(0, i - 1)], width, blocks, down=i < last)
            for i, width in enumerate(widths)
        )
        self.mid_block, self.conv_norm_out = _Middle(widths[-1]), _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        done: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return done


class _Decoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], blocks: int, channels: int) -> None:
        super().__init__()
        widths, last = widths[::-1], len(widths) - 1
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.mid_block = _Middle(widths[0])
        self.up_blocks = nn.ModuleList(
            _Level(widths[max(0, i - 1)], width, blocks + 1, up=i < last)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        done: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return done


class VAE(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, channels, H / f, W / f) and back.

    Args:
        widths: channels at each resolution, multiples of 32; f = 2^(len(widths) - 1).
        channels: of the latent.
        blocks: residual blocks at each resolution.
        quant: whether 1 x 1 convolutions stand around the latent.
    """

    def __init__(
        self, widths: tuple[int, ...], channels: int, *, blocks: int = 2, quant: bool = True
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(widths, blocks, channels)
        self.decoder = _Decoder(widths, blocks, channels)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if quant else nn.Identity()
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if quant else nn.Identity()

    def encode(self, pictures: Tensor) -> Tensor:
        """The posterior's mean."""
        mean: Tensor = self.quant_conv(self.encoder(pictures)).chunk(2, dim=1)[0]
        return mean

    def decode(self, latent: Tensor) -> Tensor:
        """Pictures, about [-1, 1]."""
        made: Tensor = self.decoder(self.post_quant_conv(latent))
        return made
