"""X-codec 2 of transformers: speech as 50 tokens of one codebook a second (arXiv 2502.04128).

The stock class (transformers 5.23 or later), from weights in its layout (HKUSTAudio/xcodec2-hf).
16 kHz speech goes through a convolutional encoder and, as mel features, through w2v-BERT; both
together are quantised by FSQ. w2v-BERT and the decoder's norms hear the whole recording.

What is added from outside: recordings run one by one or in groups of one length, never padded to
the longest; decoding gives exactly as many samples as there were, within [-1, 1]. The mel features
come from SeamlessM4T's feature extractor, as the authors' do; the stock one of X-codec 2 computes
the same through torchaudio. As there, a recording is filled up to the next whole hop, by one sample
at least. Of fewer tokens than all, the beginning is decoded and silence follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.stock import Stock, StockFacts, restored

_FACTS = StockFacts(
    name="Xcodec2",
    settings=("downsampling_ratios", "quantization_levels", "sampling_rate", "num_attention_heads"),
    tiny={
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "encoder_hidden_size": 2,
        "initializer_range": 0.2,
        "quantization_dim": 96,
        "quantization_levels": (4, 4, 4),
        "semantic_model_config": {
            "model_type": "wav2vec2-bert",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "output_hidden_size": 32,
        },
    },
)


@dataclass(frozen=True, kw_only=True)
class XCodec2(Stock, Tokenizer):
    """Speech as one token per hop.

    Attributes:
        weights: folder or hub id of the model; None: a small random one.
        seed: of the random model.
    """

    modalities: ClassVar[tuple[str, ...]] = ("audio",)
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="cnn+transformer",
        quantiser="fsq",
        training="joint+gan+semantic distillation",
        streamable=False,
        domain="speech",
    )

    weights: str | None = None
    seed: int = 0

    @property
    def facts(self) -> StockFacts:
        """Those of X-codec 2."""
        return _FACTS

    def identity(self) -> dict[str, Any]:
        """What decides ids besides the weights."""
        semantic = self.config.semantic_model_config
        return super().identity() | {"semantic_heads": semantic.num_attention_heads}

    @property
    def codebook(self) -> Codebook:
        """One codebook of all combinations of levels."""
        levels = tuple(self.config.quantization_levels)
        return Codebook(kind="fsq", sizes=(math.prod(levels),), levels=levels)

    @property
    def _hop(self) -> int:
        return int(self.config.hop_length)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(hops,), one more where the recording ends with one."""
        if shape[0] != 1:
            raise InputError(f"xcodec2 takes mono, got shape {shape}")
        return (shape[1] // self._hop + 1,)

    @cached_property
    def _mel(self) -> Any:
        from transformers import SeamlessM4TFeatureExtractor

        return SeamlessM4TFeatureExtractor(sampling_rate=self.sample_rate)

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, 1) of (B, 1, S)."""
        hop = self._hop
        filled = F.pad(media, (0, hop - media.shape[-1] % hop))
        around = F.pad(filled[:, 0], (hop // 2, hop // 2)).cpu().numpy()
        mel = self._mel(list(around), sampling_rate=self.sample_rate, return_tensors="pt")
        features = mel.input_features.to(media)
        ids: Tensor = self.network.encode(filled, features).audio_codes
        return ids.transpose(1, 2).long()

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Recordings (B, 1, S) of ids (B, k, 1)."""
        made = self.network.decode(ids.transpose(1, 2)).audio_values
        return restored(torch.nan_to_num(made), shape[1])
