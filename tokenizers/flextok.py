"""FlexTok: a picture as an ordered row of 1 to 256 tokens (arXiv 2502.13967).

Authors' code: github.com/apple/ml-flextok (sample-code licence; the weights are for research only).
Learned registers read the patches of an autoencoder's latent, each also the registers before it;
finite scalar quantisation makes one of 64,000 ids of each. A rectified flow decodes any number of
them: trained on random prefixes, it fills in what is missing, so the first tokens carry most.

Deviations: the autoencoder gives its mean instead of a sample, so the same picture has the same
ids; the noise that decoding starts from is drawn from `seed`; the position table of pictures that
are not square keeps rows and columns apart. Every picture of a batch is a row of its own, not a
part of one packed sequence. Pictures of another size than the model's are scaled to it and back.

The published configuration is not read, but for the latent's scale: every size follows from the
shapes of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.flextok_net import Decoder, Encoder, FlexTokConfig
from mmtok.tokenizers.flow import sample
from mmtok.tokenizers.network import Networked, find_weights, own_config, read_json, shapes_of
from mmtok.tokenizers.quantizers import FSQ
from mmtok.tokenizers.resize import to_size
from mmtok.tokenizers.vae import VAE

_LEVELS = (8, 8, 8, 5, 5, 5)
_ENCODER, _DECODER, _VAE = "encoder.module_dict.", "decoder.module_dict.", "vae.vae."


@dataclass(frozen=True, kw_only=True)
class FlexTok(Networked, Tokenizer):
    """A picture as K tokens, of which any first ones decode.

    Attributes:
        weights: folder, file or hub id of weights; None: a small random model.
        scaling: factor of the latents, where config.json beside the weights does not say it.
        steps: of the flow when decoding.
        guidance: scale of the guidance; 1 is none, which halves the time.
        projected: projected guidance (APG) instead of plain.
        seed: of random weights and of the noise.

    Raises:
        InputError: steps or guidance are out of range.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="transformer+flow",
        quantiser="fsq",
        training="joint+semantic distillation",
        streamable=False,
        domain="image",
    )
    nested: ClassVar[bool] = True

    weights: str | None = None
    scaling: float | None = None
    steps: int = 20
    guidance: float = 7.5
    projected: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.steps) is not int or not 1 <= self.steps <= 1000:
            raise InputError(f"flextok: steps must be 1 to 1000, got {self.steps!r}")
        if not isinstance(self.guidance, int | float) or not 0 <= self.guidance <= 100:
            raise InputError(f"flextok: guidance must be 0 to 100, got {self.guidance!r}")

    @cached_property
    def config(self) -> FlexTokConfig:
        """From mmtok's config.json, else from the shapes of the weights.

        Raises:
            InputError: neither tells.
        """
        if self.weights is None:
            return FlexTokConfig()
        file = find_weights(self.weights)
        own = own_config(FlexTokConfig, file)
        if own is not None:
            return own
        shapes = shapes_of(file)
        scaling = self.scaling
        if scaling is None and any(name.startswith(_VAE) for name in shapes):
            scaling = _published_scaling(file.with_name("config.json"))
        return inferred(shapes, scaling or 1.0, str(file))

    def build(self) -> nn.Module:
        """The network of `config`."""
        return FlexTokNetwork(self.config)

    @property
    def codebook(self) -> Codebook:
        """One codebook of all combinations of levels."""
        levels = self.config.levels
        return Codebook(kind="fsq", sizes=(math.prod(levels),), levels=levels)

    @property
    def max_tokens(self) -> int:
        """K."""
        return self.config.registers

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(K,), whatever the size of the picture."""
        if shape[0] != 3:
            raise InputError(f"flextok takes RGB, got shape {shape}")
        return (self.config.registers,)

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, 1) of (B, 3, H, W)."""
        ids: Tensor = self.network.quantize(self.network.encoder(self.latent(media))).ids
        return ids

    def latent(self, pictures: Tensor) -> Tensor:
        """What the encoder reads, (B, C, side, side), of pictures (B, 3, H, W) in [0, 1]."""
        side = self.config.side * 2 ** max(0, len(self.config.vae_channels) - 1)
        pictures = to_size(pictures, side, side).clamp(0, 1) * 2 - 1
        if self.network.vae is None:
            return pictures
        latent: Tensor = self.network.vae.vae.encode(pictures) * self.config.scaling
        return latent

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Pictures (B, *shape) of ids (B, k, 1)."""
        config, decoder = self.config, self.network.decoder
        keep = torch.full((len(ids),), ids.shape[1], device=ids.device)
        padded = F.pad(ids, (0, 0, 0, config.registers - ids.shape[1]))
        vectors = self.network.quantize.lookup(padded)
        given, free = decoder.condition(vectors, keep), decoder.condition(vectors, keep * 0)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(config.channels, config.side, config.side, generator=generator)
        latent = sample(
            noise.to(ids.device).expand(len(ids), -1, -1, -1),
            lambda x, t: decoder(x, t, given),
            lambda x, t: decoder(x, t, free),
            steps=self.steps,
            scale=self.guidance,
            projected=self.projected,
        )
        if self.network.vae is not None:
            latent = self.network.vae.vae.decode(latent / config.scaling)
        return to_size((latent + 1) / 2, shape[-2], shape[-1]).clamp(0, 1)


class FlexTokNetwork(nn.Module):
    """Autoencoder, encoder and decoder, under the names of the published weights."""

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.vae: Any = None
        if config.vae_channels:
            self.vae = nn.Module()
            self.vae.vae = VAE(config.vae_channels, config.channels, quant=config.vae_quant)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = FSQ(config.levels)


def inferred(shapes: Mapping[str, tuple[int, ...]], scaling: float, source: str) -> FlexTokConfig:
    """The configuration that weights of these shapes, in the published layout, belong to.

    Raises:
        InputError: a weight is missing, or the quantiser is not that of the published models.
    """
    try:
        registers, width = shapes[_ENCODER + "enc_register_module.registers"]
        dimensions = shapes[_ENCODER + "enc_to_latents.proj.weight"][0]
        inside = shapes[_ENCODER + "enc_patch_emb.patch_proj.weight"][1]
        places = shapes[_ENCODER + "enc_posemb_module.posembs"][-1]
        decoder_width = shapes[_DECODER + "dec_noise_patch_emb.patch_proj.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{source}: no weights of FlexTok, {error} is missing") from None
    if dimensions != len(_LEVELS):
        raise InputError(
            f"{source}: quantiser of {dimensions} dimensions, expected levels {_LEVELS}"
        )
    vae = f"{_VAE}encoder.down_blocks.{{}}.resnets.0.norm2.weight"
    widths = [shapes[vae.format(i)][0] for i in range(8) if vae.format(i) in shapes]
    channels = shapes.get(_VAE + "decoder.conv_in.weight", (0, 3))[1]
    patch = math.isqrt(inside // channels)
    return FlexTokConfig(
        levels=_LEVELS,
        width=width,
        depth=_depth(shapes, _ENCODER + "enc_transformer.blocks.{}.attn.wq.weight"),
        decoder_width=decoder_width,
        decoder_depth=_depth(shapes, _DECODER + "dec_transformer.blocks.{}.attn.wq.weight"),
        head_dim=64,
        registers=registers,
        channels=channels,
        side=places * patch,
        patch=patch,
        vae_channels=tuple(widths),
        vae_quant=_VAE + "quant_conv.weight" in shapes,
        scaling=scaling,
    )


def _depth(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    return next(i for i in range(len(shapes) + 1) if name.format(i) not in shapes)


def _published_scaling(file: Path) -> float:
    """The one number called scaling_factor or the like in a published configuration."""
    found: list[float] = []

    def look(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else ():
            if "scaling_factor" in key and isinstance(inner, int | float):
                found.append(float(inner))
            look(inner)

    if file.is_file():
        look(read_json(file))
    if len(set(found)) != 1 or not 0 < found[0] < 1000:
        raise InputError(f"{file}: does not say the scale of the latents: pass scaling=...")
    return found[0]
