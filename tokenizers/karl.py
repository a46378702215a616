"""KARL: as many tokens as a picture needs, found in one pass (arXiv 2507.07995).

Authors' code: github.com/ShivamDuggal4/karl. Patches, K learned latents and the error one is ready
to accept go through a transformer once; a small network says of every latent whether it is needed,
and those that are, projected to 12 numbers and normalised, are looked up in a codebook. A second
transformer turns mask tokens and the kept latents back into patches.

Deviations: dropped latents are taken out, where the authors' code masks them, which costs as much
as keeping them and, with more than one picture and head, gives one picture the mask of another.
What is kept may be any of the K, so the codes say which, and decoding puts each at its own place.
At least one is kept. Entries have length 1 when decoding as well, as they were trained.

The authors' networks see and predict the codes of a frozen picture tokenizer; here patches of
pixels go in and come out, and weights released for theirs are not read: mmtok's own are. Pictures
of another size than the model's are scaled to it, and back when decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.network import Networked, find_weights, own_config
from mmtok.tokenizers.quantizers import NormalizedVQ
from mmtok.tokenizers.resize import to_size
from mmtok.tokenizers.vit import Block

BINS = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09),
    *(0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38),
)
"""Mean absolute errors that a model can be asked for, of pixels in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class KARLConfig:
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
            raise InputError(f"karl: patches do not divide pictures of {self.image_size} pixels")

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True, kw_only=True)
class KARL(Networked, Tokenizer):
    """A picture as those of K tokens that it needs.

    Attributes:
        error: the mean absolute error to aim for, of pixels in [-1, 1]; less costs more tokens.
        threshold: a token is dropped where the network is surer than this that it can be.
        weights: folder or file of mmtok's weights; None: a small random model.
        seed: of the random model.

    Raises:
        InputError: error or threshold are out of range.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="transformer", quantiser="vq", training="joint", streamable=False, domain="image"
    )
    adaptive: ClassVar[bool] = True
    sparse: ClassVar[bool] = True

    error: float = 0.05
    threshold: float = 0.75
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("error", "threshold"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise InputError(f"karl: {name} must be 0 to 1, got {value!r}")

    @cached_property
    def config(self) -> KARLConfig:
        """From mmtok's config.json beside the weights.

        Raises:
            InputError: there is none.
        """
        if self.weights is None:
            return KARLConfig()
        file = find_weights(self.weights)
        own = own_config(KARLConfig, file)
        if own is None:
            raise InputError(f"{file}: karl reads mmtok's weights alone, with their config.json")
        return own

    def identity(self) -> dict[str, Any]:
        """The configuration, and what decides how many tokens are kept."""
        return {**super().identity(), "error": self._bin, "threshold": float(self.threshold)}

    def build(self) -> nn.Module:
        """The network of `config`."""
        return KARLNetwork(self.config)

    @property
    def _bin(self) -> int:
        return int(error_bin(torch.tensor(float(self.error))))

    @property
    def codebook(self) -> Codebook:
        """One codebook of directions."""
        return Codebook(kind="vq", sizes=(self.config.entries,))

    @property
    def max_tokens(self) -> int:
        """K."""
        return self.config.tokens

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(K,), whatever the size of the picture."""
        if shape[0] != 3:
            raise InputError(f"karl takes RGB, got shape {shape}")
        return (self.config.tokens,)

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, 1) of (B, 3, H, W), -1 where a token is not needed."""
        side = self.config.image_size
        pictures = to_size(media, side, side).clamp(0, 1)
        bins = torch.full((len(media),), self._bin, device=media.device)
        latents, halting = self.network.encoder(pictures, bins)
        dropped = halted(halting, self.threshold)
        ids: Tensor = self.network.quantize(latents).ids
        return ids.masked_fill(dropped[..., None], -1)

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Pictures (B, *shape) of ids (B, k, 1) at the first k places."""
        places = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        return self.decode_places(ids, places, shape)

    def decode_places(self, ids: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Pictures (B, *shape) of ids (B, k, 1) at `places` (B, k) of the K."""
        made = self.network.decoder(self.network.quantize.lookup(ids), places)
        return to_size(made, shape[-2], shape[-1]).clamp(0, 1)


def error_bin(errors: Tensor) -> Tensor:
    """Index of the smallest of `BINS` that is no less than each error; of the last if none is."""
    bins = torch.tensor(BINS, dtype=errors.dtype, device=errors.device)
    return torch.searchsorted(bins, errors).clamp(max=len(BINS) - 1)


def halted(logits: Tensor, threshold: float) -> Tensor:
    """Which latents are not needed, bool (B, K) of logits (B, K); never all of an item."""
    dropped = torch.sigmoid(logits) > threshold
    return dropped.scatter(1, logits.argmin(1, keepdim=True), False)


class KARLNetwork(nn.Module):
    """Encoder, codebook and decoder."""

    def __init__(self, config: KARLConfig) -> None:
        super().__init__()
        self.encoder = _Encoder(config)
        self.quantize = NormalizedVQ(config.token_size, config.entries)
        self.decoder = _Decoder(config)


class _Encoder(nn.Module):
    def __init__(self, config: KARLConfig) -> None:
        super().__init__()
        (width, layers, heads), scale = config.encoder, config.encoder[0] ** -0.5
        self.patch_embed = nn.Conv2d(3, width, config.patch, stride=config.patch)
        self.encoder_positional_embedding = nn.Parameter(scale * torch.randn(config.patches, width))
        self.latent_tokens = nn.Parameter(scale * torch.randn(config.tokens, width))
        self.rec_loss_embeddings = nn.Embedding(len(BINS), width)
        self.encoder_ln_pre, self.encoder_ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.halting = Halting(width)
        self.pre_quantizer_mlp = nn.Linear(width, config.token_size)

    def forward(self, pictures: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, K, token_size) and halting logits (B, K), for errors of these bins (B,)."""
        patches = self.patch_embed(2 * pictures - 1).flatten(2).transpose(1, 2)
        patches = patches + self.encoder_positional_embedding
        latents = self.latent_tokens.expand(len(patches), -1, -1)
        x = torch.cat([patches, self.rec_loss_embeddings(bins)[:, None], latents], dim=1)
        x = self.encoder_ln_pre(x)
        for block in self.transformer:
            x = block(x)
        latents = x[:, -latents.shape[1] :]
        return self.pre_quantizer_mlp(self.encoder_ln_post(latents)), self.halting(latents)


class Halting(nn.Module):
    """Logits (B, K) that a latent of (B, K, width) is not needed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder_ln_post_halt = nn.LayerNorm(width)
        self.halting_mlp = nn.Sequential(nn.Linear(width, 512), nn.Tanh(), nn.Linear(512, 1))

    def forward(self, latents: Tensor) -> Tensor:
        """Each latent by itself: what the others hold has been mixed in before."""
        found: Tensor = self.halting_mlp(self.encoder_ln_post_halt(latents)).squeeze(-1)
        return found


class _Decoder(nn.Module):
    def __init__(self, config: KARLConfig) -> None:
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
