"""EnCodec, DAC and Mimi, as transformers has them.

EnCodec (arXiv 2210.13438), DAC (arXiv 2306.06546), Mimi (arXiv 2410.00037). The networks are the
stock classes.

What is added from outside: recordings are never padded to the longest of a batch, which changes
ids of DAC, whose class takes no mask; DAC gets whole hops, as from its own feature extractor;
decoding gives exactly as many samples as there were, within [-1, 1]. Every codebook is used unless
`codebooks` says otherwise: the first ones carry most. EnCodec's 48 kHz model codes the loudness of
each chunk too, which the stock class hands out beside the ids: see mmtok/tokenizers/encodec.py.

Not offered: Mimi's streaming. Of fewer tokens than all, the beginning is decoded and silence
follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers import encodec
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.stock import Stock, StockFacts, restored


@dataclass(frozen=True, kw_only=True)
class _Family(StockFacts):
    """Facts about one model; encode and decode take (network, tensor, codebooks).

    Attributes:
        count: attribute of the configuration with the number of codebooks.
        tokens: of a configuration, for so many codebooks and samples.
    """

    count: str
    tokens: Callable[[Any, int, int], int]
    encode: Callable[[Any, Tensor, int], Tensor]
    decode: Callable[[Any, Tensor], Tensor]


def _dac_ids(network: Any, sound: Tensor, codebooks: int) -> Tensor:
    whole = F.pad(sound, (0, -sound.shape[-1] % network.config.hop_length))
    ids: Tensor = network.encode(whole, codebooks).audio_codes
    return ids


def _dac_sound(network: Any, ids: Tensor) -> Tensor:
    made: Tensor = network.decode(audio_codes=ids).audio_values
    return made.reshape(len(ids), 1, -1)


def _mimi_hop(config: Any) -> int:
    hop: int = round(config.sampling_rate / config.frame_rate)
    return hop


def _mimi_ids(network: Any, sound: Tensor, codebooks: int) -> Tensor:
    ids: Tensor = network.encode(sound, num_quantizers=codebooks).audio_codes
    return ids


def _mimi_sound(network: Any, ids: Tensor) -> Tensor:
    made: Tensor = network.decode(ids).audio_values
    return made


_FAMILIES = {
    "dac": _Family(
        name="Dac",
        count="n_codebooks",
        tokens=lambda config, _, samples: -(-samples // math.prod(config.downsampling_ratios)),
        settings=("downsampling_ratios", "sampling_rate"),
        tiny={
            "encoder_hidden_size": 8,
            "downsampling_ratios": [2, 5],
            "decoder_hidden_size": 32,
            "n_codebooks": 3,
            "codebook_size": 64,
            "codebook_dim": 4,
        },
        encode=_dac_ids,
        decode=_dac_sound,
    ),
    "encodec": _Family(
        name="Encodec",
        count="num_quantizers",
        tokens=encodec.tokens,
        settings=(
            *("upsampling_ratios", "sampling_rate", "dilation_growth_rate", "pad_mode"),
            *("use_causal_conv", "trim_right_ratio", "norm_type"),
            *("normalize", "chunk_length_s", "overlap"),
        ),
        tiny={
            "num_filters": 4,
            "hidden_size": 16,
            "upsampling_ratios": [4, 2],
            "num_lstm_layers": 1,
            "codebook_size": 64,
            "target_bandwidths": [36.0, 90.0],
        },
        encode=encodec.encode,
        decode=encodec.decode,
    ),
    "mimi": _Family(
        name="Mimi",
        count="num_quantizers",
        tokens=lambda config, _, samples: -(-samples // _mimi_hop(config)),
        settings=(
            *("upsampling_ratios", "sampling_rate", "dilation_growth_rate", "pad_mode"),
            *("use_causal_conv", "trim_right_ratio", "sliding_window", "num_attention_heads"),
        ),
        tiny={
            "num_filters": 4,
            "hidden_size": 32,
            "upsampling_ratios": [4, 2],
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "codebook_size": 64,
            "codebook_dim": 16,
            "vector_quantization_hidden_dimension": 16,
            "num_quantizers": 4,
            "upsample_groups": 32,
            "sliding_window": 20,
            "frame_rate": 1500.0,
        },
        encode=_mimi_ids,
        decode=_mimi_sound,
    ),
}


@dataclass(frozen=True, kw_only=True)
class HFAudio(Stock, Tokenizer):
    """A recording as one token of several codebooks per hop.

    Attributes:
        family: dac, encodec or mimi.
        codebooks: how many of the model's, the first ones; None: all.
        weights: folder or hub id of that model; None: a small random one.
        seed: of the random model.

    Raises:
        InputError: there is no such family.
    """

    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="cnn", quantiser="rvq", training="joint+gan", streamable=False, domain="general"
    )

    family: str = "encodec"
    codebooks: int | None = None
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.family not in _FAMILIES:
            known = ", ".join(_FAMILIES)
            raise InputError(f"hf_audio: family must be {known}, got {self.family!r}")

    @property
    def facts(self) -> _Family:
        """Those of the family."""
        return _FAMILIES[self.family]

    @cached_property
    def config(self) -> Any:
        """The stock configuration.

        Raises:
            InputError: there is none, or one of a model that is not offered.
        """
        made = super().config
        if self.family == "encodec":
            encodec.check(made, str(self.weights))
        return made

    def identity(self) -> dict[str, Any]:
        """Family, codebooks and what decides ids besides the weights."""
        return {"family": self.family, "codebooks": self._count, **super().identity()}

    def build(self) -> nn.Module:
        """The stock network, its codebooks drawn at random where no weights are given."""
        made = super().build()
        if self.weights is None:
            for name, values in made.named_buffers():
                if name.endswith(("codebook.embed", "codebook.embed_sum")):
                    values.normal_()  # zeros otherwise
        return made

    @property
    def channels(self) -> int:
        """Channels of the model."""
        return int(getattr(self.config, "audio_channels", 1))

    @cached_property
    def _count(self) -> int:
        most = int(getattr(self.config, self.facts.count))
        if self.codebooks is None:
            return most
        least = int(getattr(self.config, "num_semantic_quantizers", 1))
        if type(self.codebooks) is not int or not least <= self.codebooks <= most:
            raise InputError(
                f"hf_audio: codebooks must be {least} to {most}, got {self.codebooks!r}"
            )
        return self.codebooks

    @property
    def codebook(self) -> Codebook:
        """Codebooks, each of which quantises what those before it left over."""
        return Codebook(kind="rvq", sizes=(int(self.config.codebook_size),) * self._count)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(tokens,): hops, the last one begun counts, and loudness where the model has it."""
        if shape[0] != self.channels:
            raise InputError(
                f"hf_audio: this model takes {self.channels} channels, got shape {shape}"
            )
        return (self.facts.tokens(self.config, self._count, shape[1]),)

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, Q) of (B, C, S)."""
        return self.facts.encode(self.network, media, self._count).transpose(1, 2)

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Recordings (B, C, S) of ids (B, k, Q)."""
        return restored(self.facts.decode(self.network, ids.transpose(1, 2)), shape[1])
