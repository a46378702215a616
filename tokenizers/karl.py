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
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmtok.errors import InputError
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.latents import LatentConfig, LatentDecoder, Latents
from mmtok.tokenizers.quantizers import NormalizedVQ
from mmtok.tokenizers.resize import to_size
from mmtok.tokenizers.vit import Block

BINS = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09),
    *(0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38),
)
"""Mean absolute errors that a model can be asked for, of pixels in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class KARL(Latents[LatentConfig], Tokenizer):
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
    kind: ClassVar[type[LatentConfig]] = LatentConfig
    sparse: ClassVar[bool] = True

    error: float = 0.05
    threshold: float = 0.75
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("error", "threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"karl: {name} must be 0 to 1, got {value!r}")

    def identity(self) -> dict[str, Any]:
        """The configuration, and what decides how many tokens are kept."""
        return {**super().identity(), "error": self._bin, "threshold": float(self.threshold)}

    def build(self) -> nn.Module:
        """The network of `config`."""
        return KARLNetwork(self.config)

    @property
    def adaptive(self) -> bool:
        """It does."""
        return True

    @property
    def _bin(self) -> int:
        return int(error_bin(torch.tensor(float(self.error))))

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

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.encoder = _Encoder(config)
        self.quantize = NormalizedVQ(config.token_size, config.entries)
        self.decoder = LatentDecoder(config)


class _Encoder(nn.Module):
    def __init__(self, config: LatentConfig) -> None:
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
