"""Codes: the discrete tokens of images, clips and recordings, and the codebook they index.

Shapes: B items, K tokens of an item (ragged), Q codebooks a token draws one id from each.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmtok.errors import InputError

MAX_ENTRIES = 2**62
"""Most entries of one codebook: ids are int64."""
MAX_TOKEN_BITS = 2**17
"""Most information in one token: 16 KiB, a patch of 73 x 73 pixels as they are."""
MAX_VALUES = 3 * 2**26
"""Most values of one image, clip or recording: 67 million RGB pixels, 0.8 GB in float32."""

_KINDS = {2: "a recording (channels, samples)", 3: "a picture (3, H, W)", 4: "a clip (T, 3, H, W)"}


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """What the ids of one token mean.

    Attributes:
        kind: the quantiser: "vq", "rvq", "fsq", "lfq", "grouped-lfq", "scalar" ...
        sizes: entries of each of the Q codebooks; one token is Q ids.
        levels: what one id is made of, where it is a number in mixed radix: the levels of FSQ's
            dimensions, or a 2 for every bit of LFQ. Empty where entries are looked up.
        order: whether the first level (or bit) is the least or the most significant digit.

    Raises:
        InputError: no codebook, one with fewer than 2 or more than 2^62 entries, or more than
            `MAX_TOKEN_BITS` in one token.
    """

    kind: str
    sizes: tuple[int, ...]
    levels: tuple[int, ...] = ()
    order: Literal["lsb_first", "msb_first"] = "lsb_first"

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not 0 < len(self.kind) <= 64:
            raise InputError(f"codebook kind must be a short name, got {self.kind!r:.80}")
        if not 1 <= len(self.sizes) <= MAX_TOKEN_BITS or len(self.levels) > 62:
            raise InputError(f"expected 1 to {MAX_TOKEN_BITS} codebooks, got {len(self.sizes)}")
        numbers = (*self.sizes, *self.levels)
        if not all(type(size) is int and 2 <= size <= MAX_ENTRIES for size in numbers):
            raise InputError("a codebook must have 2 to 2^62 entries, a whole number")
        if self.bits > MAX_TOKEN_BITS:
            raise InputError(f"token of {self.bits:.0f} bits, expected at most {MAX_TOKEN_BITS}")
        if self.levels and any(size != math.prod(self.levels) for size in self.sizes):
            raise InputError(
                f"levels {self.levels!s:.80} do not make codebooks of {self.sizes[:4]}"
            )
        if self.order not in ("lsb_first", "msb_first"):
            raise InputError(f"order must be lsb_first or msb_first, got {self.order!r:.80}")

    @property
    def bits(self) -> float:
        """Information in one token, if all entries are equally likely: the sum of log2(size)."""
        return sum(math.log2(size) for size in self.sizes)


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Discrete tokens of B items, with all a decoder needs to restore the media.

    Attributes:
        ids: B int64 tensors (K_b, Q); the first tokens of the item's grid, in its order.
        codebook: what the Q ids of a token mean.
        tokenizer: the spec of what made the codes.
        tokenizer_hash: identifies its weights and settings.
        shapes: original shape of each item: (C, S) sound, (3, H, W) picture, (T, 3, H, W) clip.
        grids: full token grid of each item, such as (rows, columns) or (tokens,).
        positions: per item the places in the grid that were kept, int64 (K_b,) ascending; None
            where they are 0 .. K_b - 1.
        meta: facts about all items as plain values: `fps`, `sample_rate` and the like.

    Raises:
        InputError: the parts do not fit each other, or an id is outside its codebook.
    """

    ids: list[Tensor]
    codebook: Codebook
    tokenizer: str
    tokenizer_hash: str
    shapes: list[tuple[int, ...]]
    grids: list[tuple[int, ...]]
    positions: list[Tensor] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lists = (self.shapes, self.grids, self.ids if self.positions is None else self.positions)
        if any(len(part) != len(self.ids) for part in lists):
            raise InputError(f"{len(self.ids)} items of ids need as many shapes and grids")
        try:
            json.dumps(self.meta, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"meta must hold plain values, {error}") from None
        sizes = torch.tensor(self.codebook.sizes)
        for item, (ids, grid) in enumerate(zip(self.ids, self.grids, strict=True)):
            check_shape(self.shapes[item])
            if ids.ndim != 2 or ids.shape[1] != len(sizes) or ids.dtype != torch.int64:
                raise InputError(
                    f"ids of item {item} must be int64 (tokens, {len(sizes)}), got "
                    f"{tuple(ids.shape)} {ids.dtype}"
                )
            if len(ids) > cells(grid):
                raise InputError(f"item {item} has {len(ids)} tokens for a grid of {grid}")
            if bool(((ids < 0) | (ids >= sizes.to(ids.device))).any()):
                raise InputError(
                    f"item {item} has ids outside its codebook of {sizes[:4].tolist()}"
                )
            if self.positions is not None:
                _check_positions(self.positions[item], len(ids), cells(grid))

    @property
    def counts(self) -> list[int]:
        """Tokens of each item."""
        return [len(ids) for ids in self.ids]

    @property
    def bits(self) -> float:
        """Information in all ids, if all entries are equally likely."""
        return sum(self.counts) * self.codebook.bits

    def trim(self, k: int) -> Codes:
        """The first k tokens of every item; all of an item that has fewer.

        Raises:
            InputError: k is below 1.
        """
        if not isinstance(k, int) or k < 1:
            raise InputError(f"codes are trimmed to at least 1 token, got {k!r}")
        places = None if self.positions is None else [place[:k] for place in self.positions]
        return replace(self, ids=[ids[:k] for ids in self.ids], positions=places)

    def item(self, index: int) -> Codes:
        """One item as codes of its own."""
        places = None if self.positions is None else [self.positions[index]]
        return replace(
            self,
            ids=[self.ids[index]],
            shapes=[self.shapes[index]],
            grids=[self.grids[index]],
            positions=places,
        )


def check_shape(shape: tuple[int, ...]) -> str:
    """What kind of media a shape belongs to: "audio", "image" or "video".

    Raises:
        InputError: neither, empty, or more than `MAX_VALUES`.
    """
    colours = {2: 1, 3: shape[0] if shape else 0, 4: shape[1] if len(shape) > 1 else 0}
    whole = all(type(side) is int and side > 0 for side in shape)
    if len(shape) not in _KINDS or not whole or colours[len(shape)] not in (1, 3):
        raise InputError(f"media of shape {shape!s:.80}, expected {', '.join(_KINDS.values())}")
    if math.prod(shape) > MAX_VALUES:
        raise InputError(f"media of shape {tuple(shape)}, expected at most {MAX_VALUES} values")
    return {2: "audio", 3: "image", 4: "video"}[len(shape)]


def cells(grid: tuple[int, ...]) -> int:
    """Places in a token grid.

    Raises:
        InputError: it is no grid of one to three positive sides.
    """
    whole = all(type(side) is int and 0 < side <= MAX_VALUES for side in grid)
    if not 1 <= len(grid) <= 3 or not whole or math.prod(grid) > MAX_VALUES:
        raise InputError(
            f"token grid {grid!r:.80}: expected one to three sides, at most {MAX_VALUES}"
        )
    return math.prod(grid)


def _check_positions(places: Tensor, count: int, total: int) -> None:
    if places.shape != (count,) or places.dtype != torch.int64:
        raise InputError(f"positions must be int64 ({count},), got {tuple(places.shape)}")
    if count and (
        int(places[0]) < 0 or int(places[-1]) >= total or bool((places.diff() < 1).any())
    ):
        raise InputError(f"positions must ascend within 0 .. {total - 1}")
