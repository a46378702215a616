"""FlexTok: a picture as an ordered row of 1 to 256 tokens (arXiv 2502.13967).

Authors' code: github.com/apple/ml-flextok (sample-code licence; the weights are for research only).
Learned registers read the patches of an autoencoder's latent, each also the registers before it;
finite scalar quantisation makes one of 64,000 ids of each. A rectified flow decodes any number of
them: trained on random prefixes, it fills in what is missing, so the first tokens carry most.

Deviations: the autoencoder gives its mean instead of a sample, so the same picture has the same
ids; the noise that decoding starts from is drawn from `seed`; the position table of pictures that
are not square keeps rows and columns apart. Every picture of a batch is a row of its own, not a
part of one packed sequence. Pictures of another size than the model's are scaled to it and back.

Two things are ours. `quality` spends on each picture the fewest tokens that reach it. And a small
model trained here (`mmtok.training.flex`) gives the mean of what a picture may be in one step from
zeros, where the flow draws one such picture in many: a mean is nearer to the picture, if blurred.

The published configuration is not read, but for the latent's scale: every size follows from the
shapes of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.flextok_net import Decoder, Encoder, FlexTokConfig
from mmtok.tokenizers.flow import sample, towards
from mmtok.tokenizers.network import Networked, read_json, shapes_of
from mmtok.tokenizers.quantizers import FSQ
from mmtok.tokenizers.resize import to_size
from mmtok.tokenizers.spectrum import Spectrum
from mmtok.tokenizers.vae import VAE

_LEVELS = (8, 8, 8, 5, 5, 5)
_ENCODER, _DECODER, _VAE = "encoder.module_dict.", "decoder.module_dict.", "vae.vae."


@dataclass(frozen=True, kw_only=True)
class FlexTok(Networked[FlexTokConfig], Tokenizer):
    """A picture as K tokens, of which any first ones decode.

    Attributes:
        weights: folder, file or hub id of weights; None: a small random model.
        scaling: factor of the latents, where config.json beside the weights does not say it.
        steps: of the flow when decoding; None: 20, or the one from zeros if the model is for that.
        guidance: scale of the guidance; 1 is none, which halves the time. None: 7.5, or 1 for a
            model that decodes in one step.
        projected: projected guidance (APG) instead of plain.
        seed: of random weights and of the noise.
        quality: peak signal-to-noise ratio in dB that each picture is to reach with as few of
            `lengths` as possible; it gets all tokens if none does. None: always all.

    Raises:
        InputError: steps, guidance or quality are out of range.
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

    kind: ClassVar[type[FlexTokConfig]] = FlexTokConfig

    weights: str | None = None
    scaling: float | None = None
    steps: int | None = None
    guidance: float | None = None
    projected: bool = True
    seed: int = 0
    quality: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise InputError(f"flextok: steps must be 1 to 1000, got {self.steps!r}")
        for name in ("guidance", "quality"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                raise InputError(f"flextok: {name} must be 0 to 100, got {value!r}")

    def inferred(self, file: Path) -> FlexTokConfig:
        """From the shapes of the weights.

        Raises:
            InputError: they do not tell.
        """
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

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of tokens that the model was trained to decode, ascending, K the last."""
        return self.config.lengths or tuple(range(1, self.config.registers + 1))

    @property
    def adaptive(self) -> bool:
        """Whether `quality` decides how many tokens a picture gets."""
        return self.quality is not None

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(K,), whatever the size of the picture."""
        if shape[0] != 3:
            raise InputError(f"flextok takes RGB, got shape {shape}")
        return (self.config.registers,)

    def encode_batch(self, media: Tensor) -> Tensor | list[Tensor]:
        """Ids (B, K, 1) of (B, 3, H, W); with `quality` B of (k_b, 1)."""
        ids: Tensor = self.network.quantize(self.network.encoder(self.latent(media))).ids
        if self.quality is None:
            return ids
        counts = self._counts(ids, media, self.quality)
        return [row[:count] for row, count in zip(ids, counts.tolist(), strict=True)]

    def _counts(self, ids: Tensor, media: Tensor, quality: float) -> Tensor:
        """For each picture (B,) the fewest of `lengths` whose decoding is within `quality` dB."""
        counts = torch.full((len(ids),), self.config.registers)
        left = torch.arange(len(ids))
        for length in self.lengths[:-1]:
            made = self.decode_batch(ids[left, :length], tuple(media.shape[1:]))
            error = (made - media[left].clamp(0, 1)).square().mean((1, 2, 3)).cpu()
            met = error <= 10 ** (-quality / 10)
            counts[left[met]] = length
            left = left[~met]
            if not len(left):
                break
        return counts

    def latent(self, pictures: Tensor) -> Tensor:
        """What the encoder reads, (B, C, side, side), of pictures (B, 3, H, W) in [0, 1]."""
        config = self.config
        side = config.side * 2 ** max(0, len(config.vae_channels) - 1)
        side = next(iter(config.spectrum), side)
        pictures = to_size(pictures, side, side).clamp(0, 1) * 2 - 1
        if self.network.vae is None:
            return pictures
        latent: Tensor = self.network.vae.vae.encode(pictures) * config.scaling
        return latent

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Pictures (B, *shape) of ids (B, k, 1)."""
        config, decoder = self.config, self.network.decoder
        keep = torch.full((len(ids),), ids.shape[1], device=ids.device)
        padded = F.pad(ids, (0, 0, 0, config.registers - ids.shape[1]))
        vectors = self.network.quantize.lookup(padded)
        given, free = decoder.condition(vectors, keep), decoder.condition(vectors, keep * 0)
        start = torch.zeros(config.channels, config.side, config.side)
        if self.steps is not None or not config.direct:
            start.normal_(generator=torch.Generator().manual_seed(self.seed))
        velocity = partial(towards, decoder) if config.direct else decoder
        guidance = (1.0 if config.direct else 7.5) if self.guidance is None else self.guidance
        latent = sample(
            start.to(ids.device).expand(len(ids), -1, -1, -1),
            lambda x, t: velocity(x, t, given),
            lambda x, t: velocity(x, t, free),
            steps=self.steps or (1 if config.direct else 20),
            scale=guidance,
            projected=self.projected,
        )
        if self.network.vae is not None:
            latent = self.network.vae.vae.decode(latent / config.scaling)
        return to_size((latent + 1) / 2, shape[-2], shape[-1]).clamp(0, 1)


class FlexTokNetwork(nn.Module):
    """Encoder, decoder and perhaps an autoencoder, under the names of the published weights."""

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        self.vae: Any = None
        if config.vae_channels:
            self.vae = nn.Module()
            self.vae.vae = VAE(config.vae_channels, config.channels, quant=config.vae_quant)
        if config.spectrum:
            self.vae = nn.Module()
            self.vae.vae = Spectrum(config.spectrum[0], config.side)
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
