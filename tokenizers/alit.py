"""ALIT: more tokens round by round, until the picture is good enough (arXiv 2411.02393).

Authors' code: github.com/ShivamDuggal4/adaptive-length-tokenizer. A transformer reads patches and a
few learned latents; in each further round a few more join and all are read again, so that every
latent is worked out anew and patches carry on what earlier rounds left in them. The latents,
projected to 12 numbers and normalised, are looked up in a codebook, and a second transformer turns
mask tokens and latents into patches. A picture keeps the latents of the first round whose mean
absolute error is below `error`, else of the last one. KARL finds that number in one pass.

Patches that are below `error` by themselves are left out of later rounds. The authors' networks see
and predict codes of a frozen picture tokenizer and leave out patches at random, by how surely they
predict the right code; the choice here is fixed, as encoding has to be. Whether to go on is decided
for each picture, where the authors' code decides for the batch. As in KARL, patches of pixels go in
and come out, and mmtok's own weights alone are read.

The tokens of one round are no beginning of the next one's, but any first ones decode. Pictures of
another size than the model's are scaled to it, and back when decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.latents import LatentConfig, LatentDecoder, Latents
from mmtok.tokenizers.quantizers import NormalizedVQ
from mmtok.tokenizers.resize import to_size
from mmtok.tokenizers.vit import Block


@dataclass(frozen=True, kw_only=True)
class ALITConfig(LatentConfig):
    """Sizes of a model; `tokens` join in equal parts in `rounds`.

    Raises:
        InputError: the sizes do not divide.
    """

    rounds: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens % self.rounds:
            raise InputError(f"{self.rounds} rounds do not divide {self.tokens} tokens")

    @property
    def step(self) -> int:
        """Tokens that join in a round."""
        return self.tokens // self.rounds


@dataclass(frozen=True, kw_only=True)
class ALIT(Latents[ALITConfig], Tokenizer):
    """A picture as the latents of as many rounds as it needs.

    Attributes:
        error: mean absolute error to stop at, of pixels in [-1, 1]; 0 takes all rounds.
        weights: folder or file of mmtok's weights; None: a small random model.
        seed: of the random model.

    Raises:
        InputError: the error is out of range.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="transformer", quantiser="vq", training="joint", streamable=False, domain="image"
    )
    kind: ClassVar[type[ALITConfig]] = ALITConfig

    error: float = 0.07
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.error <= 2:
            raise InputError(f"alit: error must be 0 to 2, got {self.error!r}")

    def identity(self) -> dict[str, Any]:
        """The configuration, and what decides how many tokens are kept."""
        return {**super().identity(), "error": float(self.error)}

    @property
    def adaptive(self) -> bool:
        """It does."""
        return True

    def build(self) -> nn.Module:
        """The network of `config`."""
        return ALITNetwork(self.config)

    def encode_batch(self, media: Tensor) -> list[Tensor]:
        """Ids of B pictures (B, 3, H, W), (K_b, 1) each: K_b is a multiple of a round's tokens."""
        side = self.config.image_size
        pictures = to_size(media, side, side).clamp(0, 1)
        return [self._rounds(picture[None])[0] for picture in pictures]

    def _rounds(self, picture: Tensor) -> Tensor:
        """Ids (1, K, 1) of one picture."""
        network = self.network
        patches = network.encoder.embed(picture)
        latents = patches[:, :0]
        active = torch.ones(patches.shape[1], dtype=torch.bool, device=picture.device)
        for place in range(self.config.rounds):
            latents, patches[:, active] = network.encoder(patches[:, active], latents, place)
            ids: Tensor = network.quantize(network.encoder.project(latents)).ids
            made = self.decode_batch(ids, tuple(picture.shape[1:]))
            far = 2 * (made - picture).abs()
            if float(far.mean()) < self.error:
                break
            active = F.avg_pool2d(far.mean(1), self.config.patch).flatten() >= self.error
        return ids

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Pictures (B, *shape) of ids (B, k, 1)."""
        places = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        made = self.network.decoder(self.network.quantize.lookup(ids), places)
        return to_size(made, shape[-2], shape[-1]).clamp(0, 1)


class ALITNetwork(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, config: ALITConfig) -> None:
        super().__init__()
        self.encoder = _Encoder(config)
        self.quantize = NormalizedVQ(config.token_size, config.entries)
        self.decoder = LatentDecoder(config)


class _Encoder(nn.Module):
    """One transformer for all rounds; what tells them apart is added to the latents that join."""

    def __init__(self, config: ALITConfig) -> None:
        super().__init__()
        (width, layers, heads), scale = config.encoder, config.encoder[0] ** -0.5
        self.patch_embed = nn.Conv2d(3, width, config.patch, stride=config.patch)
        self.encoder_positional_embedding = nn.Parameter(scale * torch.randn(config.patches, width))
        self.latent_tokens = nn.Parameter(scale * torch.randn(config.step, width))
        self.round_embedding = nn.Embedding(config.rounds, width)
        self.encoder_ln_pre, self.encoder_ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.pre_quantizer_mlp = nn.Linear(width, config.token_size)

    def embed(self, pictures: Tensor) -> Tensor:
        """Patches (B, P, width) of pictures (B, 3, H, W) in [0, 1], each of length 1."""
        patches = self.patch_embed(2 * pictures - 1).flatten(2).transpose(1, 2)
        return F.normalize(patches + self.encoder_positional_embedding, dim=-1)

    def forward(self, patches: Tensor, latents: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Latents (B, k + step, width) and patches (B, p, width) after round `place`, from 0."""
        new = self.latent_tokens + self.round_embedding.weight[place]
        x = torch.cat([patches, latents, new.expand(len(patches), -1, -1)], dim=1)
        x = self.encoder_ln_pre(x)
        for block in self.transformer:
            x = block(x)
        return x[:, patches.shape[1] :], F.normalize(x[:, : patches.shape[1]], dim=-1)

    def project(self, latents: Tensor) -> Tensor:
        """Vectors (B, k, token_size) for the codebook."""
        made: Tensor = self.pre_quantizer_mlp(self.encoder_ln_post(latents))
        return made
