"""What a tokenizer takes: whole media, or a stream of pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmtok.codes import check_shape
from mmtok.errors import InputError

if TYPE_CHECKING:
    from mmtok.tokenizers.base import Stream, Tokenizer

MAX_VALUE = 16.0
"""Largest magnitude of a value: resampling overshoots 1 a little, pixels of 0 .. 255 by far."""


def check_media(tokenizer: Tokenizer, media: Sequence[Tensor]) -> list[Tensor]:
    """Media in float32 where the tokenizer runs.

    Raises:
        InputError: they are not what it takes.
    """
    if isinstance(media, Tensor) or not all(isinstance(item, Tensor) for item in media):
        raise InputError(f"{tokenizer.name} takes a list of tensors, one per item")
    return [checked(tokenizer, item, f"item {place}") for place, item in enumerate(media)]


def checked(tokenizer: Tokenizer, item: Tensor, what: str) -> Tensor:
    """One item, or a piece of one, in float32 where the tokenizer runs.

    Raises:
        InputError: its kind, size, type or values are not what the tokenizer takes.
    """
    kind = check_shape(tuple(item.shape))
    if kind not in tokenizer.modalities:
        raise InputError(
            f"{tokenizer.name} takes {' and '.join(tokenizer.modalities)}, {what} is {kind}"
        )
    if not item.is_floating_point():
        raise InputError(f"{what} must hold finite floating point values, got {item.dtype}")
    tokenizer.grid(tuple(item.shape))
    made = item.to(tokenizer.device, torch.float32)
    largest = float(made.abs().max())  # NaN if any value is
    if not largest < float("inf"):
        raise InputError(f"{what} must hold finite floating point values")
    if largest > MAX_VALUE:
        span = "[-1, 1]" if kind == "audio" else "[0, 1]"
        raise InputError(f"{what} reaches {largest:.4g}, expected values in {span}: divide it")
    return made


class CheckedStream:
    """A stream that takes pieces of one item, and none after its end."""

    def __init__(self, tokenizer: Tokenizer, stream: Stream) -> None:
        self.tokenizer, self.stream = tokenizer, stream
        self.sides: torch.Size | None = None
        self.ended = False

    def push(self, chunk: Tensor) -> Tensor:
        """As in `Stream`.

        Raises:
            InputError: the piece is not what the tokenizer takes, is no clip or recording, or its
                sides are not those of the pieces before; or the stream has ended.
        """
        if self.ended:
            raise InputError("the stream has ended: open a new one for the next item")
        if not isinstance(chunk, Tensor) or chunk.ndim not in (2, 4):
            raise InputError("a stream takes clips (t, 3, H, W) or recordings (C, s)")
        time = 0 if chunk.ndim == 4 else 1
        sides = chunk.shape[1:] if chunk.ndim == 4 else chunk.shape[:1]
        if chunk.shape[time]:
            made = checked(self.tokenizer, chunk, "piece")
        else:  # nothing of the right sides is as good as a moment of them
            moment = chunk.new_zeros((1, *sides) if time == 0 else (*sides, 1))
            made = checked(self.tokenizer, moment, "piece").narrow(time, 0, 0)
        if self.sides is not None and self.sides != sides:
            raise InputError(f"piece of sides {tuple(sides)}, those before had {tuple(self.sides)}")
        self.sides = sides
        with torch.no_grad():
            return self.stream.push(made)

    def finish(self) -> Tensor:
        """As in `Stream`; nothing is left the second time."""
        self.ended = True
        with torch.no_grad():
            return self.stream.finish()
