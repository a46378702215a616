"""EnCodec, DAC and Mimi, as transformers has them.

EnCodec (arXiv 2210.13438), DAC (arXiv 2306.06546), Mimi (arXiv 2410.00037). The networks are the
stock classes, loaded by their own `from_pretrained` from safetensors; a weight that is missing or
of another shape is refused, where the stock loader would make one up.

What is added from outside: recordings are never padded to the longest of a batch, which changes
ids of DAC, whose class takes no mask; DAC gets whole hops, as from its own feature extractor;
decoding gives exactly as many samples as there were, within [-1, 1]. Every codebook is used unless
`codebooks` says otherwise: the first ones carry most.

Not offered: EnCodec's 48 kHz model, whose loudness per chunk is no code, and Mimi's streaming. Of
fewer tokens than all, the beginning is decoded and silence follows.
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
from mmtok.io.files import reason
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.network import Networked


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Facts about one model; encode and decode take (network, tensor, codebooks).

    Attributes:
        name: of the stock classes, before Model and Config.
        count: attribute of the configuration with the number of codebooks.
        hop: samples per token of a configuration.
        settings: what decides ids besides weights and their shapes.
        tiny: configuration of the random model.
    """

    name: str
    count: str
    hop: Callable[[Any], int]
    settings: tuple[str, ...]
    tiny: dict[str, Any]
    encode: Callable[[Any, Tensor, int], Tensor]
    decode: Callable[[Any, Tensor], Tensor]


def _encodec_ids(network: Any, sound: Tensor, codebooks: int) -> Tensor:
    # The quantiser rounds a bandwidth down to whole codebooks: half of one more is safely within.
    each = math.log2(network.config.codebook_size) * network.config.frame_rate / 1000
    ids: Tensor = network.quantizer.encode(network.encoder(sound), (codebooks + 0.5) * each)
    return ids.transpose(0, 1)


def _encodec_sound(network: Any, ids: Tensor) -> Tensor:
    made: Tensor = network.decoder(network.quantizer.decode(ids.transpose(0, 1)))
    return made


def _dac_ids(network: Any, sound: Tensor, codebooks: int) -> Tensor:
    whole = F.pad(sound, (0, -sound.shape[-1] % network.config.hop_length))
    ids: Tensor = network.encode(whole, codebooks).audio_codes
    return ids


def _dac_sound(network: Any, ids: Tensor) -> Tensor:
    made: Tensor = network.decode(audio_codes=ids).audio_values
    return made.reshape(len(ids), 1, -1)


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
        hop=lambda config: math.prod(config.downsampling_ratios),
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
        hop=lambda config: math.prod(config.upsampling_ratios),
        settings=(
            *("upsampling_ratios", "sampling_rate", "dilation_growth_rate", "pad_mode"),
            *("use_causal_conv", "trim_right_ratio", "norm_type"),
        ),
        tiny={
            "num_filters": 4,
            "hidden_size": 16,
            "upsampling_ratios": [4, 2],
            "num_lstm_layers": 1,
            "codebook_size": 64,
            "target_bandwidths": [36.0, 90.0],
        },
        encode=_encodec_ids,
        decode=_encodec_sound,
    ),
    "mimi": _Family(
        name="Mimi",
        count="num_quantizers",
        hop=lambda config: round(config.sampling_rate / config.frame_rate),
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
class HFAudio(Networked, Tokenizer):
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
        if self.family not in _FAMILIES:
            known = ", ".join(_FAMILIES)
            raise InputError(f"hf_audio: family must be {known}, got {self.family!r}")

    @property
    def _facts(self) -> _Family:
        return _FAMILIES[self.family]

    def _stock(self, kind: str) -> Any:
        import transformers

        return getattr(transformers, f"{self._facts.name}{kind}")

    @cached_property
    def config(self) -> Any:
        """The stock configuration.

        Raises:
            InputError: there is none, or one of a model that is not offered.
        """
        kind = self._stock("Config")
        if self.weights is None:
            return kind(**self._facts.tiny)
        try:
            values, _ = kind.get_config_dict(self.weights)
            made = kind.from_dict(values)
        except Exception as error:  # transformers raises whatever it trips over
            raise InputError(f"{self.weights}: no configuration ({reason(error)})") from None
        if values.get("model_type") != self.family:
            raise InputError(
                f"{self.weights}: is of {values.get('model_type')!r}, expected {self.family}"
            )
        if getattr(made, "normalize", False) or getattr(made, "audio_channels", 1) != 1:
            raise InputError(f"{self.weights}: only mono models without normalisation are offered")
        return made

    def identity(self) -> dict[str, Any]:
        """Family, codebooks and what decides ids besides the weights."""
        settings = {name: getattr(self.config, name) for name in self._facts.settings}
        return {"family": self.family, "codebooks": self._count, "config": settings}

    def build(self) -> nn.Module:
        """The stock network, its codebooks drawn at random where no weights are given."""
        made: nn.Module = self._stock("Model")(self.config)
        if self.weights is None:
            for name, values in made.named_buffers():
                if name.endswith(("codebook.embed", "codebook.embed_sum")):
                    values.normal_()  # zeros otherwise
        return made

    def read(self, weights: str) -> dict[str, Tensor]:
        """The tensors that the stock loader finds, none of which it made up."""
        try:
            found, said = self._stock("Model").from_pretrained(
                weights, config=self.config, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # transformers raises whatever it trips over
            raise InputError(f"{weights}: cannot be loaded ({reason(error)})") from None
        if wrong := [*said["missing_keys"], *said["mismatched_keys"]]:
            shown = ", ".join(str(name) for name in wrong[:3])
            raise InputError(f"{weights}: {len(wrong)} weights missing or of wrong shape: {shown}")
        return dict(found.state_dict())

    @property
    def sample_rate(self) -> int:
        """Hz of the model."""
        return int(self.config.sampling_rate)

    @cached_property
    def _count(self) -> int:
        most = int(getattr(self.config, self._facts.count))
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
        """(hops,), the last one begun counts."""
        if shape[0] != 1:
            raise InputError(f"hf_audio takes mono, got shape {shape}")
        return (-(-shape[1] // self._facts.hop(self.config)),)

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, Q) of (B, 1, S)."""
        return self._facts.encode(self.network, media, self._count).transpose(1, 2)

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Recordings (B, 1, S) of ids (B, k, Q)."""
        made = self._facts.decode(self.network, ids.transpose(1, 2)).clamp(-1, 1)
        return F.pad(made, (0, max(0, shape[1] - made.shape[-1])))[..., : shape[1]]
