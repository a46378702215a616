"""C-ViViT of Phenaki: clips of any length, of which no token knows what comes after it.

Paper: arXiv 2210.02399; there is no code of its authors. The layout and the details follow
github.com/lucidrains/phenaki-pytorch, MIT, which has no published weights. The first frame is cut
into patches, what follows into patches of `span` frames; blocks over the places of a step come
first, then blocks over each place's past. Signs of a projection are the token (lookup-free
quantisation).

Deviations: that code convolves over transposed axes, which lets later frames into earlier tokens;
here the convolution sees this step and the two before. Clips are encoded step by step, always, so
that the tokens of a beginning are the beginning of the tokens to the last bit, and streaming gives
the same; it also means that memory grows with a place's past, not with its square. Frames may have
any size: what is missing to whole patches and spans is filled up with the last pixels and frames,
and cut off again. A picture is a clip of one frame.

Of fewer tokens than all, the places of the last step that have none decode from zeros, and the
frames after it repeat its last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.codes import Codebook
from mmtok.errors import InputError
from mmtok.tokenizers.base import Stream, Taxonomy, Tokenizer
from mmtok.tokenizers.cvivit_net import CViViTConfig, CViViTNetwork
from mmtok.tokenizers.network import Networked, read_weights
from mmtok.tokenizers.resize import to_multiple

MAX_PLACES = 2**13
"""Most tokens of a step: every head holds a number for each pair of them, and eight heads take
2 GiB. Frames of 512 x 1024 pixels in patches of 8 are as many."""

_UNUSED = ("context_norm.", "null_kv", "rel_pos_bias.slopes", "rel_pos_bias.bias")


@dataclass(frozen=True, kw_only=True)
class CViViT(Networked[CViViTConfig], Tokenizer):
    """A clip as (1 + steps) grids of tokens, a picture as one.

    Attributes:
        weights: folder or file of weights; None: a small random model.
        seed: of the random model.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        coder="transformer", quantiser="lfq", training="joint+gan", streamable=True, domain="video"
    )
    causal: ClassVar[bool] = True

    kind: ClassVar[type[CViViTConfig]] = CViViTConfig

    weights: str | None = None
    seed: int = 0

    def inferred(self, file: Path) -> CViViTConfig:
        """From the shapes of the weights.

        Raises:
            InputError: they do not tell.
        """
        state = read_weights(file)
        return inferred({name: tuple(w.shape) for name, w in state.items()}, str(file))

    def build(self) -> nn.Module:
        """The network of `config`."""
        return CViViTNetwork(self.config)

    def published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the weights that take no part."""
        return published_names(state)

    @property
    def codebook(self) -> Codebook:
        """One id of `bits` signs, the first of which is the highest bit."""
        bits = self.config.bits
        return Codebook(kind="lfq", sizes=(2**bits,), levels=(2,) * bits, order="msb_first")

    @property
    def time_stride(self) -> int:
        """Frames of a step."""
        return self.config.span

    @property
    def time_start(self) -> int:
        """The first frame is a step of its own."""
        return 1

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(rows, columns) of patches, before them the number of steps in a clip.

        Raises:
            InputError: no colours, or more than `MAX_PLACES` tokens in a step.
        """
        if shape[-3] != 3:
            raise InputError(f"cvivit takes RGB, got shape {shape}")
        space = tuple(-(-side // self.config.patch) for side in shape[-2:])
        if (places := space[0] * space[1]) > MAX_PLACES:
            raise InputError(
                f"cvivit: frames of {shape[-1]} x {shape[-2]} pixels are {places} tokens, expected "
                f"at most {MAX_PLACES}, whose attention takes gigabytes: make them smaller"
            )
        return space if len(shape) == 3 else (1 - (1 - shape[0]) // self.config.span, *space)

    def encode_batch(self, media: Tensor) -> Tensor:
        """Ids (B, K, 1) of (B, 3, H, W) or (B, T, 3, H, W)."""
        stream = _Steps(self)
        clips = media if media.ndim == 5 else media[:, None]
        return torch.cat([stream.take(clips), stream.rest()], dim=1)

    def decode_batch(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Media (B, *shape) of ids (B, k, 1)."""
        grid = self.grid(shape)
        rows, columns = grid[-2:]
        network, places = self.network, rows * columns
        memory, made = network.start(rows, columns), []
        for part in torch.split(ids, places, dim=1):
            vectors = F.pad(network.vq.lookup(part), (0, 0, 0, places - part.shape[1]))
            grids = vectors.reshape(len(ids), rows, columns, -1)
            made.append(network.decode_step(grids, memory))
        frames = torch.cat(made, dim=1)[..., : shape[-2], : shape[-1]].clamp(0, 1)
        if len(shape) == 3:
            return frames[:, 0]
        missing = max(0, shape[0] - frames.shape[1])
        return torch.cat([frames, *[frames[:, -1:]] * missing], dim=1)[:, : shape[0]]

    def stream(self) -> Stream:
        """Encodes a clip a few frames at a time."""
        return _Steps(self)


class _Steps:
    """Frames that do not yet make a step, and the network's memory of those that did."""

    def __init__(self, tokenizer: CViViT) -> None:
        self.tokenizer = tokenizer
        self.memory: Any = None
        self.waiting: Tensor | None = None

    def push(self, chunk: Tensor) -> Tensor:
        """Ids (k, 1) of the steps that frames (t, 3, H, W) complete."""
        return self.take(chunk[None])[0]

    def finish(self) -> Tensor:
        """Ids of the last step, filled up with its last frame."""
        return self.rest()[0]

    def take(self, frames: Tensor) -> Tensor:
        """As `push`, of a batch (B, t, 3, H, W)."""
        if self.waiting is not None:
            frames = torch.cat([self.waiting, frames], dim=1)
        return self._ids(list(self._cut(frames)), len(frames))

    def rest(self) -> Tensor:
        """As `finish`, of a batch."""
        waiting, self.waiting = self.waiting, None
        if waiting is None or not waiting.shape[1]:
            return self._ids([], 1 if waiting is None else len(waiting))
        missing = self.tokenizer.config.span - waiting.shape[1]
        return self._ids([torch.cat([waiting, *[waiting[:, -1:]] * missing], 1)], len(waiting))

    def _cut(self, frames: Tensor) -> Iterator[Tensor]:
        """Whole steps; what is left waits."""
        span, start = self.tokenizer.config.span, 0
        first = self.memory is None
        while start + (size := 1 if first else span) <= frames.shape[1]:
            yield frames[:, start : start + size]
            start, first = start + size, False
        self.waiting = frames[:, start:]

    def _ids(self, steps: list[Tensor], batch: int) -> Tensor:
        network = self.tokenizer.network
        found = [torch.empty(batch, 0, 1, dtype=torch.int64, device=self.tokenizer.device)]
        for step in steps:
            whole = to_multiple(step.flatten(0, 1), self.tokenizer.config.patch)
            if self.memory is None:
                self.memory = network.start(*self.tokenizer.grid(tuple(step.shape[2:])))
            frames = whole.reshape(*step.shape[:2], *whole.shape[1:])
            features = network.encode_step(frames, self.memory)
            found.append(network.vq.ids(features.flatten(1, 2)))
        return torch.cat(found, dim=1)


def inferred(shapes: Mapping[str, tuple[int, ...]], source: str) -> CViViTConfig:
    """The configuration behind shapes of the authors' weights.

    Raises:
        InputError: they are of another model.
    """

    def depth(kind: str) -> int:
        names = (f"enc_{kind}_transformer.layers.{i}.1.q_scale" for i in range(256))
        return sum(name in shapes for name in names)

    try:
        values = shapes["to_patch_emb_first_frame.1.weight"][0]
        return CViViTConfig(
            width=shapes["to_patch_emb.2.weight"][0],
            heads=shapes["spatial_rel_pos_bias.net.2.weight"][0],
            head_dim=shapes["enc_spatial_transformer.layers.0.1.q_scale"][0],
            patch=math.isqrt(values // 3),
            span=shapes["to_patch_emb.1.weight"][0] // values,
            spatial=depth("spatial"),
            temporal=depth("temporal"),
            bits=shapes["vq.project_in.weight"][0],
        )
    except (KeyError, IndexError, ZeroDivisionError):
        raise InputError(f"{source}: no weights of C-ViViT") from None


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what does not take part: losses' networks, empty keys, norms of other inputs."""
    dropped = ("discr.", "vgg.", "vq.mask", "vq.codebook", "vq.zero")
    return {
        name: weight
        for name, weight in state.items()
        if not name.startswith(dropped) and not any(part in name for part in _UNUSED)
    }
