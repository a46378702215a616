"""Decode and encode a few sources at once: the visual tokens that are left of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.io.image import load_image
from mmtok.io.video import Clip, is_video, load_video
from mmtok.models.reduction import Reduction
from mmtok.serving.recipe import Recipe
from mmtok.serving.sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtok.models.lvlm import LVLM
    from mmtok.models.visual import Media


CLIP_FACTS = tuple(f.name for f in fields(Clip) if f.name != "frames")


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is stored of one image or video; D is the width the language model reads.

    Attributes:
        kind: "image" or "video", as the model read it.
        size: (width, height) of the picture or frames in pixels.
        clip: of a video, what was sampled of it (`Clip` without its pictures), else None.
        stacked: whether the encoder gave one tensor for all items, not one for each.
        grids: (t, h, w) of each of its entries: one, or one a frame or tile.
        counts: tokens of each entry before reduction.
        kept_counts: and after it.
        features: (k, D).
        kept: (k,) int64, ascending, which of the tokens these were, over all entries.
        position: (k, 3) int64 (t, h, w) within the entry.
        deepstack: (k, D) for each of the first decoder layers, where the family has that.
    """

    kind: str
    size: tuple[int, int]
    clip: dict[str, Any] | None
    stacked: bool
    grids: list[tuple[int, int, int]]
    counts: list[int]
    kept_counts: list[int]
    features: Tensor
    kept: Tensor
    position: Tensor
    deepstack: list[Tensor] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Everything that is no tensor, JSON-ready."""
        names = ("kind", "size", "clip", "stacked", "grids", "counts", "kept_counts")
        return {name: getattr(self, name) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by name."""
        named = {"features": self.features, "kept": self.kept, "position": self.position}
        return named | {f"deepstack.{i}": x for i, x in enumerate(self.deepstack)}


def decode(source: Source, recipe: Recipe) -> Image | Clip:
    """The picture or the sampled frames of a source.

    Raises:
        InputError: not readable, whatever is wrong with it.
    """
    try:
        with source.file() as file:
            if is_video(file):
                return load_video(file, frames=recipe.frames, fps=recipe.fps)
            return load_image(file)
    except InputError as error:
        # a temporary file's name says nothing to the user
        said = str(error).partition(": ")[2] if source.offset or source.cell else str(error)
        raise InputError(f"{source.name}: {said}" if said != str(error) else said) from None


def model_inputs(lvlm: LVLM, media: Sequence[Image | Clip], recipe: Recipe) -> dict[str, Tensor]:
    """The processor's part: one prompt for each picture or clip, on the model's device.

    Raises:
        InputError: the processor refuses one of them.
    """
    return lvlm.inputs_batch(
        [
            (None, [item], recipe.text) if isinstance(item, Clip) else ([item], None, recipe.text)
            for item in media
        ]
    )


def encode_batch(
    lvlm: LVLM,
    reduction: Reduction,
    media: Sequence[Image | Clip],
    inputs: dict[str, Tensor],
    recipe: Recipe,
) -> list[Features]:
    """Run the vision tower and the reducers on several pictures or clips at once.

    Args:
        lvlm: the model.
        reduction: of that model.
        media: what `inputs` was made of.
        inputs: from `model_inputs`.
        recipe: names the stored type.

    Raises:
        InputError: a reducer refuses one of them, or features do not fit the stored type.
    """
    with torch.inference_mode():
        reduction.encode(inputs)
    parts, length = reduction.media, reduction.inputs["input_ids"].shape[1]
    dtype = getattr(torch, recipe.dtype)
    made = [_collect(parts, row, length, item, dtype) for row, item in enumerate(media)]
    for found in made:
        if not all(bool(x.isfinite().all()) for x in (found.features, *found.deepstack)):
            raise InputError(
                f"{lvlm.name}: its features hold NaN or infinity as {recipe.dtype}; "
                "expected finite ones, perhaps with --dtype auto"
            )
    return made


def _collect(
    parts: list[Media], row: int, length: int, item: Image | Clip, dtype: torch.dtype
) -> Features:
    """The entries of one prompt, one behind the other."""
    (part,) = (p for p in parts if any(int(place[0]) // length == row for place in p.places))
    own = [i for i, place in enumerate(part.places) if int(place[0]) // length == row]
    masks = [part.tokens.mask[i] for i in own]
    counts = [len(part.places[i]) for i in own]
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    clip = item if isinstance(item, Clip) else None
    return Features(
        kind=part.kind,
        size=item.frames[0].size if isinstance(item, Clip) else item.size,
        clip=None if clip is None else {name: getattr(clip, name) for name in CLIP_FACTS},
        stacked=isinstance(part.output.pooler_output, Tensor),
        grids=[tuple(part.tokens.grid[i].tolist()) for i in own],
        counts=counts,
        kept_counts=[len(part.kept[i]) for i in own],
        features=_join(part.tokens.features, own, masks).to(dtype),
        kept=torch.cat([part.kept[i].cpu() + s for i, s in zip(own, starts, strict=False)]),
        position=_join(part.tokens.position, own, masks),
        deepstack=[_join(layer, own, masks).to(dtype) for layer in part.deepstack],
    )


def _join(values: Tensor, own: list[int], masks: list[Tensor]) -> Tensor:
    return torch.cat([values[i][m] for i, m in zip(own, masks, strict=True)]).cpu().contiguous()
