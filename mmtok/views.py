"""The pictures a model saw, each with the places of the visual tokens that were kept.

A view is drawn over the pixels the vision tower read, wherever these are pictures: crops, tiles,
frames. Qwen-VL's pixels are loose patches, and the detail of an AnyRes image is spread over crops
of a padded picture; there the original picture stands for them, stretched over the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmtok.io.overlay import overlay
from mmtok.io.sheet import arrange
from mmtok.models.pixels import PIXELS

if TYPE_CHECKING:
    from torch import Tensor

    from mmtok.models.lvlm import LVLM
    from mmtok.models.visual import Media
    from mmtok.pipeline import Result


class View(NamedTuple):
    """One picture the model saw: an image, a tile of one, or a frame.

    Attributes:
        title: such as "image 1" or "clip 1, frame 3 of 8".
        picture: RGB.
        kept: (h, w) bool, True where a token of that cell reached the language model.
    """

    title: str
    picture: Image.Image
    kept: NDArray[np.bool_]


def views(
    lvlm: LVLM,
    result: Result,
    images: Sequence[Image.Image] = (),
    clips: Sequence[Sequence[Image.Image]] = (),
) -> list[View]:
    """What the model saw of one prompt, and which of its tokens were kept.

    Newline tokens have no place in a picture and are left out. Tokens that leave later, inside
    the decoder, count as kept.

    Args:
        lvlm: the model that answered.
        result: its answer to one prompt.
        images: the prompt's images.
        clips: the prompt's clips, each a list of frames.

    Returns:
        One view per image, tile or frame, in the order of the prompt.
    """
    out = []
    clips_as_images = all(part.kind == "image" for part in result.reduction.media)
    stills = [(f"image {i + 1}", [picture]) for i, picture in enumerate(images)]
    whole = [(f"clip {i + 1}", clip) for i, clip in enumerate(clips)]
    frames = [
        (f"{name}, frame {t + 1} of {len(clip)}", [frame])
        for name, clip in whole
        for t, frame in enumerate(clip)
    ]
    for part in result.reduction.media:
        sources = whole if part.kind == "video" else stills + frames * clips_as_images
        seen = _Seen(lvlm, part.kind, result.reduction.inputs)
        for item in range(len(part.places)):
            out += _item(part, item, seen, sources)
    return out


def draw(shown: Sequence[View], *, columns: int = 4) -> Image.Image:
    """One view as an overlay, several as a sheet with captions; dropped cells are dimmed."""
    if len(shown) == 1:
        return overlay(shown[0].picture, shown[0].kept)
    panels = [
        (
            f"{view.title}\n{view.kept.sum()} of {view.kept.size} cells kept",
            overlay(view.picture, view.kept, min_side=224, max_side=480),
        )
        for view in shown
    ]
    return arrange(panels, columns=columns, font_size=15)


class _Seen:
    """The pixels a vision tower read, as pictures in the order of the tokens."""

    def __init__(self, lvlm: LVLM, kind: str, inputs: dict[str, Any]) -> None:
        made_by = lvlm.processor.video_processor if kind == "video" else None
        self._processor = made_by or lvlm.processor.image_processor
        self._pixels: Tensor = inputs[PIXELS[kind]]
        self._next = 0
        self.are_pictures = self._pixels.ndim >= 4
        self.split_over_crops = kind == "image" and "image_sizes" in inputs

    def crop(self, item: int) -> Image.Image:
        """The first crop of AnyRes image `item`: the whole image."""
        return self._picture(self._pixels[item, 0])

    def take(self, count: int) -> list[Image.Image]:
        """The next pictures."""
        flat = self._pixels.reshape(-1, *self._pixels.shape[-3:])
        first, self._next = self._next, self._next + count
        return [self._picture(pixels) for pixels in flat[first : self._next]]

    def _picture(self, pixels: Tensor) -> Image.Image:
        x = pixels.float().cpu().numpy().transpose(1, 2, 0)
        if self._processor.do_normalize:
            x = x * np.array(self._processor.image_std) + np.array(self._processor.image_mean)
        return Image.fromarray((x * 255).round().clip(0, 255).astype(np.uint8))


def _item(
    part: Media, item: int, seen: _Seen, sources: Sequence[tuple[str, Sequence[Image.Image]]]
) -> list[View]:
    """The views of one item of the budget: an image, a clip, or a tile where tiles are items."""
    grids = _kept(part, item)
    by_source = len(sources) == len(part.places)
    name, frames = sources[item] if by_source else (f"tile {item + 1}", [])
    if seen.split_over_crops:
        pictures = [frames[0] if len(grids) > 1 else seen.crop(item)]
        grids = grids[-1:]
    elif seen.are_pictures:
        pictures = seen.take(len(grids))
    else:
        step = -(-len(frames) // len(grids))  # frames that one row of tokens merges
        pictures = [frames[min(t * step, len(frames) - 1)] for t in range(len(grids))]
    unit = "frame" if part.kind == "video" else "tile"
    titles = [f"{name}, {unit} {t + 1} of {len(grids)}" for t in range(len(grids))]
    titles = [name] if len(grids) == 1 else titles
    return [View(*x) for x in zip(titles, pictures, grids, strict=True)]


def _kept(part: Media, item: int) -> NDArray[np.bool_]:
    """(t, h, w) bool, True where a token was kept."""
    tokens = part.tokens
    grid = np.zeros(tuple(tokens.grid[item].tolist()), dtype=bool)
    t, h, w = tokens.position[item][tokens.mask[item]].cpu().numpy().T
    # An AnyRes overview (t = 0) has a grid of its own and may reach beyond that of the detail.
    inside = (h < grid.shape[1]) & (w < grid.shape[2])
    grid[t[inside], h[inside], w[inside]] = True
    return grid
