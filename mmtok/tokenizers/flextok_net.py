"""The two transformers of FlexTok, under the names of its published weights.

Shapes: B pictures, C channels of a latent picture (C, H, W), P patches of it, K registers, D wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.tokenizers.flextok_blocks import Block, plain_norm, zeroed


@dataclass(frozen=True, kw_only=True)
class FlexTokConfig:
    """Sizes of a model.

    Attributes:
        levels: of the quantiser's dimensions.
        width, depth: of the encoder's transformer.
        decoder_width, decoder_depth: of the decoder's.
        head_dim: features of an attention head.
        registers: K, the tokens of a picture.
        channels, side, patch: of the latent picture and its patches.
        vae_channels: width of the autoencoder in front at each resolution; empty: none, and the
            latent picture is the picture itself, in [-1, 1].
        vae_quant: whether the autoencoder has 1 x 1 convolutions around its latent.
        scaling: by which the autoencoder's latents are multiplied.
        spectrum: (pixels,) where the latent picture is made of the lowest side x side frequencies
            of pictures of so many pixels a side (`spectrum.Spectrum`); empty: it is not.
        direct: the decoder gives the picture instead of the velocity, and has learned to do so in
            one step, from zeros in place of noise.
        lengths: numbers of tokens that the model was trained to decode, from 1 up to all;
            empty: any.

    Raises:
        InputError: sizes that do not divide, or lengths that do not rise from 1 to all registers.
    """

    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    width: int = 64
    depth: int = 2
    decoder_width: int = 64
    decoder_depth: int = 2
    head_dim: int = 32
    registers: int = 16
    channels: int = 3
    side: int = 32
    patch: int = 4
    vae_channels: tuple[int, ...] = ()
    vae_quant: bool = False
    scaling: float = 1.0
    spectrum: tuple[int, ...] = ()
    direct: bool = False
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        widths = (self.width, self.decoder_width)
        if self.side % self.patch or any(w % self.head_dim or w % 4 for w in widths):
            raise InputError(f"flextok: patch or head_dim do not divide the sizes of {self}")
        lengths = self.lengths
        if lengths and (sorted({1, *lengths}) != [*lengths] or lengths[-1] != self.registers):
            raise InputError(f"flextok: lengths {lengths} do not rise from 1 to {self.registers}")
        pixels = self.spectrum
        if pixels and (len(pixels) > 1 or pixels[0] < self.side or self.vae_channels):
            raise InputError(f"flextok: no {self.side} frequencies a side of spectrum {pixels}")


def sincos(rows: int, columns: int, width: int) -> Tensor:
    """(width, rows, columns): sine and cosine of the row, then of the column, width / 4 each."""
    rate = 10_000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row = torch.arange(rows)[:, None] * rate
    column = torch.arange(columns)[:, None] * rate
    down = torch.cat([row.sin(), row.cos()], dim=1)[:, None].expand(-1, columns, -1)
    across = torch.cat([column.sin(), column.cos()], dim=1)[None].expand(rows, -1, -1)
    return torch.cat([down, across], dim=-1).permute(2, 0, 1).float().contiguous()


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) to (B, P, patch * patch * C), row by row; inside (row, column, channel)."""
    b, c, h, w = x.shape
    cut = x.reshape(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(b, -1, patch * patch * c)


def from_patches(x: Tensor, patch: int, rows: int) -> Tensor:
    """The reverse of `to_patches`."""
    b, n, width = x.shape
    c, columns = width // patch**2, n // rows
    cut = x.reshape(b, rows, columns, patch, patch, c).permute(0, 5, 1, 3, 2, 4)
    return cut.reshape(b, c, rows * patch, columns * patch)


def _leaf(**parts: nn.Module | nn.Parameter) -> nn.Module:
    """A module that only holds names."""
    made = nn.Module()
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def _table(side: int, width: int) -> nn.Parameter:
    return nn.Parameter(sincos(side, side, width)[None], requires_grad=False)


class Encoder(nn.Module):
    """Latent pictures to K register vectors of as many numbers as the quantiser has dimensions.

    Registers see all patches and the registers before them; patches see patches alone. So the
    first tokens do not depend on how many follow.
    """

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        width, side = config.width, config.side // config.patch
        self.patch = config.patch
        registers = nn.Parameter(0.02 * torch.randn(config.registers, width))
        blocks = nn.ModuleList(Block(width, config.head_dim) for _ in range(config.depth))
        inside = config.patch**2 * config.channels
        self.module_dict: Any = nn.ModuleDict(
            {
                "enc_patch_emb": _leaf(patch_proj=nn.Linear(inside, width)),
                "enc_posemb_module": _leaf(posembs=_table(side, width)),
                "enc_register_module": _leaf(registers=registers),
                "enc_transformer": _leaf(blocks=blocks),
                "enc_to_latents": _leaf(proj=nn.Linear(width, len(config.levels))),
            }
        )
        patches = torch.arange(side * side + config.registers) < side * side
        before = torch.ones(len(patches), len(patches), dtype=torch.bool).tril()
        self.register_buffer("mask", patches | (before & ~patches[:, None]), persistent=False)

    mask: Tensor

    def forward(self, latent: Tensor) -> Tensor:
        """(B, K, dimensions) of (B, C, H, W)."""
        part = self.module_dict
        x = part["enc_patch_emb"].patch_proj(to_patches(latent, self.patch))
        x = x + part["enc_posemb_module"].posembs.flatten(2).transpose(1, 2)
        registers = part["enc_register_module"].registers
        x = torch.cat([x, registers.expand(len(x), -1, -1)], dim=1)
        for block in part["enc_transformer"].blocks:
            x = block(x, self.mask)
        done: Tensor = part["enc_to_latents"].proj(plain_norm(x[:, -len(registers) :]))
        return done


class Decoder(nn.Module):
    """The velocity that leads from noise to a latent picture, given register vectors.

    Of a `direct` model it is the latent picture itself.
    """

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        width, side = config.decoder_width, config.side // config.patch
        self.patch, self.side = config.patch, side
        inside = config.patch**2 * config.channels
        blocks = nn.ModuleList(
            Block(width, config.head_dim, modulated=True) for _ in range(config.decoder_depth)
        )
        places = nn.Parameter(0.02 * torch.randn(1, 1, width, config.registers))
        time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        head = _leaf(
            adaLN_modulation=zeroed(nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))),
            proj=nn.Linear(width, inside),
        )
        missing, null = (nn.Parameter(0.02 * torch.randn(width)) for _ in range(2))
        self.module_dict: Any = nn.ModuleDict(
            {
                "dec_from_latents": _leaf(proj=nn.Linear(len(config.levels), width)),
                "dec_registers_posemb_module": _leaf(posembs=places),
                "dec_nested_dropout": _leaf(dropout_mask_token=missing),
                "dec_latent_dropout": _leaf(nullcond=null),
                "dec_noise_patch_emb": _leaf(patch_proj=nn.Linear(inside, width)),
                "dec_patches_posemb_module": _leaf(posembs=_table(side, width)),
                "dec_time_embedder": _leaf(mlp=time),
                "dec_transformer": _leaf(blocks=blocks),
                "dec_to_patches": head,
            }
        )

    def condition(self, vectors: Tensor, keep: Tensor) -> Tensor:
        """Registers (B, K, D) of quantised vectors (B, K, dimensions).

        Args:
            vectors: what stands behind the first `keep` tokens does not matter.
            keep: (B,) how many tokens are there; 0 leaves all to the decoder (no condition).
        """
        part = self.module_dict
        x = part["dec_from_latents"].proj(vectors)
        x = x + part["dec_registers_posemb_module"].posembs[0].transpose(1, 2)
        there = torch.arange(x.shape[1], device=x.device) < keep[:, None]
        x = torch.where(there[..., None], x, part["dec_nested_dropout"].dropout_mask_token)
        null = part["dec_latent_dropout"].nullcond
        done: Tensor = torch.where((keep > 0)[:, None, None], x, null)
        return done

    def forward(self, noised: Tensor, t: Tensor, registers: Tensor) -> Tensor:
        """Velocity or picture (B, C, H, W) at noised (B, C, H, W) and times t (B,) in [0, 1]."""
        part = self.module_dict
        time = part["dec_time_embedder"].mlp(time_embedding(t))
        x = part["dec_noise_patch_emb"].patch_proj(to_patches(noised, self.patch))
        x = x + part["dec_patches_posemb_module"].posembs.flatten(2).transpose(1, 2)
        patches = x.shape[1]
        x = torch.cat([x, registers], dim=1)
        for block in part["dec_transformer"].blocks:
            x = block.modulate(x, time, patches)
        head = part["dec_to_patches"]
        shift, scale = head.adaLN_modulation(time)[:, None].chunk(2, dim=-1)
        x = head.proj(plain_norm(x[:, :patches]) * (1 + scale) + shift)
        return from_patches(x, self.patch, self.side)


def time_embedding(t: Tensor) -> Tensor:
    """(B, 256) cosines and sines of t (B,) at 128 rates from 1000 down to about 4."""
    rate = 1000 * torch.exp(-math.log(256) * torch.arange(128, device=t.device) / 128)
    angle = t[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=1)
