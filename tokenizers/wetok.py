"""WeTok: pictures as a grid of tokens, each several ids of signs (arXiv 2508.05599).

Authors' code: github.com/zhuangshaobin/WeTok, Apache-2.0. A convolutional encoder, grouped
lookup-free quantisation and a decoder whose norms follow mean and deviation of the whole code, so
tiles decoded one by one differ from the picture decoded at once. `generative` is the second stage,
whose decoder also reads noise; the noise is drawn from `seed`, so that decoding is repeatable.

Published checkpoints are pickles of the training framework; they are read as plain tensors, the
averaged weights preferred, whose names have lost their dots. Sides that are no multiple of the step
are filled up with their last pixels, and cut back when decoding. Trimmed codes decode with the
middle between both signs at the missing places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.base import Taxonomy, Tokenizer
from mmtok.tokenizers.network import Networked
from mmtok.tokenizers.quantizers_lfq import GroupedLFQ
from mmtok.tokenizers.resize import to_multiple
from mmtok.tokenizers.wetok_net import Decoder, Encoder


@dataclass(frozen=True, kw_only=True)
class WeTokConfig:
    """Sizes of a model: width, its factor at each resolution, blocks there, groups of bits."""

    width: int = 32
    mult: tuple[int, ...] = (1, 2)
    blocks: int = 1
    groups: int = 2
    bits: int = 4
    generative: bool = False


_RATIOS = {
    24: WeTokConfig(width=256, mult=(1, 2, 2, 4), blocks=4, groups=8, bits=8),
    48: WeTokConfig(width=256, mult=(1, 2, 2, 4), blocks=4, groups=4, bits=8),
    192: WeTokConfig(width=256, mult=(1, 1, 2, 2, 4), blocks=4, groups=4, bits=8),
    768: WeTokConfig(width=256, mult=(1, 1, 2, 2, 4, 8), blocks=4, groups=4, bits=8),
}


@dataclass(frozen=True, kw_only=True)
class WeTok(Networked[WeTokConfig], Tokenizer):
    """A picture as a grid of tokens.

    Attributes:
        weights: folder, file or hub id of published weights; None: random ones.
        ratio: of the published models, by how much they compress: 24, 48, 192 or 768; None: what
            mmtok's config.json beside the weights says, or a small model.
        generative: whether the decoder reads noise.
        seed: of random weights and of the noise.

    Raises:
        InputError: there is no such ratio, or `generative` is given where config.json tells.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="cnn", quantiser="grouped-lfq", training="joint+gan", streamable=False, domain="image"
    )

    kind: ClassVar[type[WeTokConfig]] = WeTokConfig

    weights: str | None = None
    ratio: int | None = None
    generative: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and self.ratio not in _RATIOS:
            raise InputError(f"wetok: ratio must be one of {list(_RATIOS)}, got {self.ratio!r}")
        if self.generative and self.weights is not None and self.ratio is None:
            raise InputError("wetok: generative goes with ratio; without one, config.json says it")

    @cached_property
    def config(self) -> WeTokConfig:
        """Of the published model, of mmtok's config.json, or a small one."""
        if self.ratio is None and self.weights is not None:
            return super().config
        chosen = WeTokConfig() if self.ratio is None else _RATIOS[self.ratio]
        return replace(chosen, generative=self.generative)

    def inferred(self, file: Path) -> WeTokConfig:
        """Refused: the shapes do not tell all.

        Raises:
            InputError: always.
        """
        raise InputError(f"wetok: say which model the weights are: ratio={list(_RATIOS)}")

    def build(self) -> nn.Module:
        """The network of `config`."""
        return WeTokNetwork(self.config)

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Encoder and decoder: the averaged weights where there are any, else the plain ones."""
        with torch.device("meta"):
            names = WeTokNetwork(self.config).state_dict()
        averaged = {name: state.get(f"model_ema.{name.replace('.', '')}") for name in names}
        kept = {n: w for n, w in state.items() if n.startswith(("encoder.", "decoder."))}
        return kept | {name: weight for name, weight in averaged.items() if weight is not None}

    @property
    def codebook(self) -> Codebook:
        """One codebook per group of bits."""
        return GroupedLFQ(self.config.groups, self.config.bits).codebook

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(rows, columns) of the latent."""
        if shape[0] != 3:
            raise InputError(f"wetok takes RGB, got shape {shape}")
        return (-(-shape[1] // self._step), -(-shape[2] // self._step))

    @property
    def _step(self) -> int:
        return int(2 ** (len(self.config.mult) - 1))

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, groups) of (B, 3, H, W)."""
        latent = self.network.encoder(to_multiple(media, self._step) * 2 - 1)
        ids: Tensor = self.network.quantize(latent.flatten(2).transpose(1, 2)).ids
        return ids

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Pictures (B, *shape) of ids (B, k, groups)."""
        rows, columns = self.grid(shape)
        vectors = self.network.quantize.lookup(ids)
        vectors = F.pad(vectors, (0, 0, 0, rows * columns - ids.shape[1]))
        code = vectors.transpose(1, 2).reshape(len(ids), -1, rows, columns)
        noise = None
        if self.config.generative:
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn(code.shape[1:], generator=generator).to(code.device).expand_as(code)
        pictures: Tensor = self.network.decoder(code, noise)[..., : shape[1], : shape[2]]
        return ((pictures + 1) / 2).clamp(0, 1)


class WeTokNetwork(nn.Module):
    """Encoder and decoder, under the names of the published weights; the quantiser has none."""

    def __init__(self, config: WeTokConfig) -> None:
        super().__init__()
        sizes = (config.width, config.mult, config.blocks, config.groups * config.bits)
        self.encoder = Encoder(*sizes)
        self.decoder = Decoder(*sizes, noise=config.generative)
        self.quantize = GroupedLFQ(config.groups, config.bits)
