"""What tokenizers share that make a picture of one size K latents among its patches.

Shapes: B pictures, P patches, K latents, k of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.network import Networked
from mmtok.tokenizers.vit import Block


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Sizes of a model; `encoder` and `decoder` are (width, layers, heads).

    Raises:
        InputError: a patch does not divide the picture's side.
    """

    encoder: tuple[int, int, int] = (64, 2, 2)
    decoder: tuple[int, int, int] = (64, 2, 2)
    patch: int = 8
    image_size: int = 32
    tokens: int = 16
    token_size: int = 12
    entries: int = 256

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise InputError(f"patches of {self.patch} do not divide {self.image_size} pixels")

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.image_size // self.patch) ** 2


Sizes = TypeVar("Sizes", bound=LatentConfig)


class Latents(Networked[Sizes]):
    """What a `Tokenizer` of latents adds; put it before `Tokenizer`."""

    @property
    def codebook(self) -> Codebook:
        """One codebook of directions."""
        return Codebook(kind="vq", sizes=(self.config.entries,))

    @property
    def max_tokens(self) -> int:
        """K."""
        return int(self.config.tokens)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(K,), whatever the size of the picture."""
        if shape[0] != 3:
            raise InputError(f"{self.name} takes RGB, got shape {shape}")
        return (self.max_tokens,)


class LatentDecoder(nn.Module):
    """Mask tokens become patches, among the latents that were kept."""

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        (width, layers, heads), scale = config.decoder, config.decoder[0] ** -0.5
        self.side, self.patch = config.image_size // config.patch, config.patch
        self.mask_token = nn.Parameter(scale * torch.randn(1, 1, width))
        self.patch_positions = nn.Parameter(scale * torch.randn(config.patches, width))
        self.latent_positions = nn.Parameter(scale * torch.randn(config.tokens, width))
        self.decoder_embed = nn.Linear(config.token_size, width)
        self.decoder_ln_pre, self.decoder_ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))
        out = nn.Linear(2 * width, 3 * config.patch**2)
        self.to_pixels = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), out)

    def forward(self, vectors: Tensor, places: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of quantised latents (B, k, token_size) at places (B, k)."""
        masks = (self.mask_token + self.patch_positions).expand(len(vectors), -1, -1)
        kept = self.decoder_embed(vectors) + self.latent_positions[places]
        x = self.decoder_ln_pre(torch.cat([masks, kept], dim=1))
        for block in self.transformer:
            x = block(x)
        made = self.to_pixels(self.decoder_ln_post(x[:, : masks.shape[1]])).transpose(1, 2)
        pictures = F.pixel_shuffle(made.unflatten(2, (self.side, self.side)), self.patch)
        return (pictures + 1) / 2
