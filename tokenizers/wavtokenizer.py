"""WavTokenizer: speech and music as 40 or 75 tokens of one codebook a second (arXiv 2408.16532).

Authors' code: github.com/jishengpeng/WavTokenizer, MIT. Strided convolutions and an LSTM encode
mono, at 24 kHz in all published models; the nearest of 4,096 vectors is the token; a decoder with
attention over the whole recording makes magnitudes and phases of Fourier frames, whose overlap-add
is the sound.

Deviations: decoding gives exactly as many samples as there were, not whole hops; a batch is never
padded, since attention and group norms of the decoder would hear the padding; samples stay within
[-1, 1]. The decoder's norms take their first condition, as the authors' do outside of training.

Nothing streams: the last layer of the encoder and all of the decoder look at both sides. Of fewer
tokens than all, the beginning is decoded and silence follows.

Published .ckpt files are read as they are: every size follows from the shapes of their weights. The
unused decoder of another codec and the discriminators in them are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.network import Networked, read_weights
from mmtok.tokenizers.wavtokenizer_net import WavTokenizerConfig, WavTokenizerNetwork

_PUBLISHED = "feature_extractor."
_BOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook."


@dataclass(frozen=True, kw_only=True)
class WavTokenizer(Networked[WavTokenizerConfig], Tokenizer):
    """A recording as one token per hop.

    Attributes:
        weights: folder or file of weights; None: a small random model.
        seed: of the random model.
    """

    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="cnn+rnn", quantiser="vq", training="joint+gan", streamable=False, domain="general"
    )

    kind: ClassVar[type[WavTokenizerConfig]] = WavTokenizerConfig

    weights: str | None = None
    seed: int = 0

    @property
    def sample_rate(self) -> int:
        """24,000 Hz in all published models."""
        return self.config.sample_rate

    def inferred(self, file: Path) -> WavTokenizerConfig:
        """From the shapes of the weights.

        Raises:
            InputError: they do not tell.
        """
        state = self.published(read_weights(file))
        return inferred({name: tuple(w.shape) for name, w in state.items()}, str(file))

    def build(self) -> nn.Module:
        """The network of `config`."""
        return WavTokenizerNetwork(self.config)

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Encoder, codebook and decoder under their short names, weight norms folded."""
        if any(name.startswith(_PUBLISHED) for name in state):
            return published_names(state)
        return state

    @property
    def codebook(self) -> Codebook:
        """One codebook."""
        return Codebook(kind="vq", sizes=(self.config.entries,))

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(hops,), the last one begun counts."""
        if shape[0] != 1:
            raise InputError(f"wavtokenizer takes mono, got shape {shape}")
        return (-(-shape[1] // self.config.hop),)

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, 1) of (B, 1, S)."""
        ids: Tensor = self.network.quantize(self.network.encoder(media).transpose(1, 2)).ids
        return ids

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Recordings (B, 1, S) of ids (B, k, 1)."""
        made: Any = self.network.decode(self.network.quantize.lookup(ids)).clamp(-1, 1)
        return F.pad(made, (0, max(0, shape[1] - made.shape[1])))[:, None, : shape[1]]


def inferred(shapes: Mapping[str, tuple[int, ...]], source: str) -> WavTokenizerConfig:
    """The configuration behind shapes of published weights, after `published_names`.

    Raises:
        InputError: they are of another model.
    """
    layers = sum(name.endswith(".gamma") for name in shapes)
    # Every third layer is a convolution that strides, but for the last one.
    kernels = [shapes[name] for i in range(1, 9) if (name := f"encoder.{3 * i}.weight") in shapes]
    try:
        return WavTokenizerConfig(
            filters=shapes["encoder.0.weight"][0],
            ratios=tuple(kernel[2] // 2 for kernel in kernels[:-1]),
            latent=shapes["quantize.layers.layers.0._codebook.embed"][2],
            entries=shapes["quantize.layers.layers.0._codebook.embed"][1],
            width=shapes["backbone.embed.weight"][0],
            hidden=shapes["backbone.convnext.0.pwconv1.weight"][0],
            layers=layers,
            conditions=shapes["backbone.norm.scale.weight"][0],
            n_fft=shapes["head.istft.window"][0],
        )
    except (KeyError, IndexError):
        raise InputError(f"{source}: no weights of WavTokenizer") from None


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder, codebook, backbone and head of a published checkpoint; the rest is dropped.

    Weight normalisation, under its old or its new name, becomes one plain weight.
    """
    found: dict[str, Tensor] = {}
    for name, weight in state.items():
        if name.startswith(_BOOK):
            part = name.removeprefix(_BOOK).replace("inited", "initted")
            value = weight.reshape(()).bool() if part == "initted" else weight[None]
            found[f"quantize.layers.layers.0._codebook.{part}"] = value
        elif name.startswith(("backbone.", "head.")):
            found[name] = weight
        elif name.startswith("feature_extractor.encodec.encoder.model."):
            short = name.removeprefix("feature_extractor.encodec.").replace(
                "encoder.model.", "encoder."
            )
            short = short.replace(".conv.conv.", ".")
            short = short.replace("parametrizations.weight.original0", "weight_g")
            found[short.replace("parametrizations.weight.original1", "weight_v")] = weight
    for name in [name for name in found if name.endswith("weight_g")]:
        length, direction = found.pop(name), found.pop(re.sub("_g$", "_v", name), None)
        if direction is None or direction.ndim != 3:
            raise InputError(f"{name}: a length without its direction")
        norm = direction.norm(dim=(1, 2), keepdim=True)
        found[name.removesuffix("_g")] = direction * (length / norm)
    return found
