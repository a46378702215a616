"""What a tokenizer is: media in, `Codes` out, and back.

Media are floating point tensors: pictures (3, H, W) and clips (T, 3, H, W) in [0, 1], recordings
(C, S) in [-1, 1] at the tokenizer's sample rate. Items of a batch may differ in size. Items of one
shape may run together; by default each runs alone, so that a batch gives exactly the ids its items
give one by one, down to the last near-tie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from mmtok.codes import Codebook, Codes, check_shape
from mmtok.errors import InputError
from mmtok.models.zoo import embedded_tokenizers
from mmtok.options import check_types
from mmtok.tokenizers.checks import CheckedStream, check_media
from mmtok.tokenizers.digest import digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Taxonomy:
    """The five properties by which codecs are compared (arXiv 2506.10274).

    Attributes:
        coder: encoder and decoder: "cnn", "cnn+rnn", "transformer", "none" ...
        quantiser: "vq", "rvq", "fsq", "grouped-lfq", "scalar" ...
        training: "joint", "separate" or "none", with auxiliary objectives after a plus.
        streamable: whether codes leave before the media has ended.
        domain: what it was made for: "image", "video", "speech", "music", "general" ...
    """

    coder: str
    quantiser: str
    training: str
    streamable: bool
    domain: str


class Stream(Protocol):
    """Encodes one item piece by piece; what comes out adds up to the whole."""

    def push(self, chunk: Tensor) -> Tensor:
        """Ids (k, Q) of the tokens that this chunk completes; maybe none.

        Chunks are cut along time: (t, 3, H, W) of a clip, (C, s) of a recording.
        """

    def finish(self) -> Tensor:
        """What is left, once the media has ended."""


@dataclass(frozen=True, kw_only=True)
class Tokenizer(ABC):
    """Turns media into discrete tokens and back.

    Attributes:
        modalities: what it takes, of "image", "video", "audio".
        taxonomy: its kind, for tables.
        causal: the codes of a beginning are the beginning of the codes, where it ends with a
            token: at `time_start` frames or samples and every `time_stride` after that.
        nested: made so that fewer tokens give the same media with less detail.
        sparse: keeps any tokens of the grid, not the first ones; `encode_batch` then gives the
            whole grid, with -1 for what is dropped, and the codes say which places were kept.
    """

    modalities: ClassVar[tuple[str, ...]]
    taxonomy: ClassVar[Taxonomy]
    causal: ClassVar[bool] = False
    nested: ClassVar[bool] = False
    sparse: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_types(self.name, self)
        if not 0 <= (seed := getattr(self, "seed", 0)) < 2**63:
            raise InputError(f"{self.name}: seed must be 0 to 2^63 - 1, got {seed}")

    @property
    def adaptive(self) -> bool:
        """Whether it chooses by itself how many tokens an item gets."""
        return False

    @property
    def sample_rate(self) -> int | None:
        """Hz of the recordings it takes; None for pictures and clips."""
        return None

    @property
    def channels(self) -> int:
        """Channels of the recordings it takes."""
        return 1

    @property
    def time_stride(self) -> int:
        """Frames or samples that one step of tokens adds, in a causal tokenizer."""
        return 1

    @property
    def time_start(self) -> int:
        """Frames or samples that the first step of tokens takes."""
        return self.time_stride

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of an item; None where they grow with the media."""
        return None

    @property
    @abstractmethod
    def codebook(self) -> Codebook:
        """The Q codebooks a token draws its ids from."""

    @abstractmethod
    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Token grid of media of this shape; its product is the number of tokens.

        Raises:
            InputError: media of that shape are not taken.
        """

    @abstractmethod
    def encode_batch(self, media: Tensor) -> Tensor | list[Tensor]:
        """Ids of (B, *shape): (B, K, Q) int64, or B of (K_b, Q) where K depends on content."""

    @abstractmethod
    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Media (B, *shape) from ids (B, k, Q): the first k tokens of the grid, maybe not all."""

    def decode_places(self, ids: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        """As `decode_batch`, of ids that stand at `places` (B, k) of the grid, ascending."""
        return self.decode_batch(ids, shape)

    def encoder_state(self) -> Stream:
        """A new stream that encodes one item piece by piece, each of which it checks.

        Raises:
            InputError: the tokenizer needs the whole item.
        """
        return CheckedStream(self, self.stream())

    def stream(self) -> Stream:
        """As `encoder_state`, of pieces that were checked and are in float32 where it runs.

        Raises:
            InputError: the tokenizer needs the whole item.
        """
        raise InputError(f"{self.name} does not stream: it needs the whole item to encode it")

    def identity(self) -> dict[str, Any]:
        """The settings that decide, together with the weights, which ids come out."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def state(self) -> Mapping[str, Tensor]:
        """The weights that decide which ids come out, by name."""
        return {}

    def to(self, device: torch.device | str) -> Self:
        """The tokenizer itself, its weights moved to a device."""
        return self

    @property
    def device(self) -> torch.device:
        """Where it runs: that of its weights."""
        return next((weight.device for weight in self.state().values()), torch.device("cpu"))

    @property
    def name(self) -> str:
        """The registered name: the stem of the file the class stands in."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def spec(self) -> str:
        """What builds this object again; weights that do not ship have to be named anew.

        Where weights lie is nobody's business who gets the codes, so that is left out.
        """
        ships = getattr(self, "weights", None) in embedded_tokenizers()
        said = [f for f in fields(self) if f.name != "weights" or ships]
        changed = [f for f in said if getattr(self, f.name) != f.default]
        arguments = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in changed)
        return f"{self.name}({arguments})" if arguments else self.name

    @cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 of name, settings and weights: codes are decoded by what made them alone."""
        return digest({"name": self.name, **self.identity()}, self.state())

    @torch.no_grad()
    def encode(
        self, media: Sequence[Tensor], *, max_tokens: int | None = None, batch_size: int = 1
    ) -> Codes:
        """The codes of a batch.

        Args:
            media: floating point (3, H, W), (T, 3, H, W) or (C, S), of any sizes.
            max_tokens: keep at most so many tokens of each item, the first ones.
            batch_size: items of one shape that run together. Above 1, an id whose two nearest
                entries lie as near as float rounding may differ from that of the item alone.

        Raises:
            InputError: media of a kind or size that is not taken, or with values that are NaN,
                infinite or far out of range.
        """
        items = check_media(self, media)
        shapes = [tuple(item.shape) for item in items]
        ids: list[Tensor] = [torch.empty(0)] * len(items)
        for group in batches(shapes, batch_size):
            made = self.encode_batch(torch.stack([items[i] for i in group]))
            for i, row in zip(group, made, strict=True):
                ids[i] = row
        places = None
        if self.sparse:
            places = [(row[:, 0] >= 0).nonzero()[:, 0] for row in ids]
            ids = [row[kept] for row, kept in zip(ids, places, strict=True)]
        codes = Codes(
            ids=ids,
            positions=places,
            codebook=self.codebook,
            tokenizer=self.spec,
            tokenizer_hash=self.tokenizer_hash,
            shapes=shapes,
            grids=[self.grid(shape) for shape in shapes],
            meta={} if self.sample_rate is None else {"sample_rate": self.sample_rate},
        )
        return codes if max_tokens is None else codes.trim(max_tokens)

    def trim(self, codes: Codes, k: int) -> Codes:
        """The first k tokens of every item, which `decode` takes as well.

        Raises:
            InputError: k is below 1, or the codes are not this tokenizer's.
        """
        self._check_codes(codes)
        return codes.trim(k)

    @torch.no_grad()
    def decode(self, codes: Codes, *, batch_size: int = 1) -> list[Tensor]:
        """Media of the original shapes, also from codes that were trimmed.

        Raises:
            InputError: codes of another tokenizer or of other weights, or an item without tokens.
        """
        self._check_codes(codes)
        keys = list(zip(codes.shapes, codes.counts, strict=True))
        places = codes.positions or [torch.arange(count) for count in codes.counts]
        media: list[Tensor] = [torch.empty(0)] * len(keys)
        for group in batches(keys, batch_size):
            ids, kept = (
                torch.stack([part[i].to(self.device) for i in group])
                for part in (codes.ids, places)
            )
            made = self.decode_places(ids, kept, codes.shapes[group[0]])
            for i, item in zip(group, made, strict=True):
                media[i] = item
        return media

    def _check_codes(self, codes: Codes) -> None:
        if codes.tokenizer_hash != self.tokenizer_hash:
            raise InputError(
                f"these codes were made by {codes.tokenizer} ({codes.tokenizer_hash[:12]}), not by "
                f"{self.spec} with these weights ({self.tokenizer_hash[:12]}): use the same ones"
            )
        if codes.codebook != self.codebook:
            raise InputError(f"these codes use another codebook than {self.spec}")
        if codes.positions is not None and not self.sparse:
            raise InputError(f"{self.name} decodes the first tokens of an item, not any of them")
        for place, (shape, grid) in enumerate(zip(codes.shapes, codes.grids, strict=True)):
            if check_shape(shape) not in self.modalities or self.grid(shape) != grid:
                raise InputError(f"item {place}: {shape} does not have a token grid of {grid}")
            if not len(codes.ids[place]):
                raise InputError(f"item {place} has no tokens")


def batches(keys: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Places of equal keys, at most `size` at a time.

    Raises:
        InputError: size is below 1.
    """
    if size < 1:
        raise InputError(f"batch_size must be at least 1, got {size}")
    places: dict[Any, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    for same in places.values():
        for start in range(0, len(same), size):
            yield same[start : start + size]
