"""Patchification: patches of pixels are the tokens, down to one pixel a token (arXiv 2502.03738).

The paper feeds patches of 16 x 16 down to 1 x 1 pixels to a model as vectors. To make codes of
them, every value is rounded to one of `levels` evenly spaced ones; 256 keep 8-bit pictures as they
are. There are no weights; what it costs is tokens: 50,176 of them at 224 x 224 pixels and patch 1.

Sides that are no multiple of the patch are filled up with their last pixel, and cut back when
decoding. Tokens run row by row, span after span; those trimmed off come back as mid-grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.base import Stream, Taxonomy, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Patchify(Tokenizer):
    """Pixels of a patch as the ids of one token.

    Attributes:
        patch: pixels along a side of a patch.
        frames: frames of a clip that one patch spans.
        levels: values that each of red, green and blue may take.

    Raises:
        InputError: a number is out of range.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="none", quantiser="scalar", training="none", streamable=True, domain="general"
    )
    causal: ClassVar[bool] = True

    patch: int = 16
    frames: int = 1
    levels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least, most in (("patch", 1, 64), ("frames", 1, 64), ("levels", 2, 65536)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"patchify: {name} must be {least} to {most}, got {value!r}")
        _ = self.codebook  # refuses tokens that are too large

    @property
    def codebook(self) -> Codebook:
        """One id for each value of a patch, in the order (frame, row, column, colour)."""
        return Codebook(kind="scalar", sizes=(self.levels,) * (3 * self.frames * self.patch**2))

    @property
    def time_stride(self) -> int:
        """Frames of one span."""
        return self.frames

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(rows, columns) of patches, before them the number of spans in a clip."""
        if shape[-3] != 3:
            raise InputError(f"patchify takes RGB, got shape {shape}")
        space = tuple(-(-side // self.patch) for side in shape[-2:])
        return space if len(shape) == 3 else (-(-shape[0] // self.frames), *space)

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, Q) of (B, 3, H, W) or (B, T, 3, H, W)."""
        clip = media if media.ndim == 5 else media[:, None].expand(-1, self.frames, -1, -1, -1)
        values = self._fill(clip).clamp(0, 1).mul(self.levels - 1).round().long()
        b, t, _, h, w = values.shape
        p, f = self.patch, self.frames
        cut = values.reshape(b, t // f, f, 3, h // p, p, w // p, p)
        return cut.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(b, -1, 3 * f * p * p)

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Media (B, *shape) of ids (B, k, Q)."""
        grid = self.grid(shape)
        t, rows, columns = grid if len(grid) == 3 else (1, *grid)
        p, f = self.patch, self.frames
        values = ids.float() / (self.levels - 1)
        values = F.pad(values, (0, 0, 0, t * rows * columns - ids.shape[1]), value=0.5)
        cut = values.reshape(-1, t, rows, columns, f, p, p, 3).permute(0, 1, 4, 7, 2, 5, 3, 6)
        clip = cut.reshape(-1, t * f, 3, rows * p, columns * p)[..., : shape[-2], : shape[-1]]
        return clip[:, : shape[0]] if len(shape) == 4 else clip[:, 0]

    def stream(self) -> Stream:
        """Encodes a clip a few frames at a time."""
        return _Spans(self)

    def _fill(self, clip: Tensor) -> Tensor:
        """Repeat the last frame, row and column up to whole patches."""
        for dim, unit in ((1, self.frames), (3, self.patch), (4, self.patch)):
            if missing := -clip.shape[dim] % unit:
                last = clip.narrow(dim, clip.shape[dim] - 1, 1)
                clip = torch.cat([clip, *[last] * missing], dim=dim)
        return clip


class _Spans:
    """Frames that do not yet make a span."""

    def __init__(self, tokenizer: Patchify) -> None:
        self.tokenizer = tokenizer
        self.waiting: Tensor | None = None

    def push(self, chunk: Tensor) -> Tensor:
        """Ids of the spans that frames (t, 3, H, W) complete."""
        frames = chunk if self.waiting is None else torch.cat([self.waiting, chunk])
        whole = len(frames) - len(frames) % self.tokenizer.frames
        self.waiting = frames[whole:]
        return self._ids(frames[:whole])

    def finish(self) -> Tensor:
        """Ids of the last span, filled up with its last frame."""
        waiting, self.waiting = self.waiting, None
        return self._ids(torch.empty(0) if waiting is None else waiting)

    def _ids(self, frames: Tensor) -> Tensor:
        if not len(frames):
            return torch.empty(0, len(self.tokenizer.codebook.sizes), dtype=torch.int64)
        return self.tokenizer.encode_batch(frames[None])[0]
