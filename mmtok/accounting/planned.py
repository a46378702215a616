"""How many visual tokens a picture or a clip of a given size becomes, per family, without a model.

Pixel limits are those of the published preprocessor files, which the config does not hold; tiling
and rounding follow the image and video processors of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, floor, isqrt, prod, sqrt
from typing import Any

from mmtok.accounting.encoders import kept_cls
from mmtok.accounting.shapes import MediaShapes, anyres_tiles, cells, side_of
from mmtok.errors import InputError
from mmtok.options import check_value, fits, shown

Size = tuple[int, int]
FREE_SIZE = 448
"""Side in pixels assumed for models that take pictures of any size, when none is given."""


@dataclass(frozen=True)
class PlannedMedia:
    """What the encoder reads, and the visual tokens of each item (an image, a tile or a clip)."""

    shapes: MediaShapes
    items: list[int]


def planned(
    config: Any, *, size: Size | None = None, images: int | None = None, frames: int | None = None
) -> PlannedMedia:
    """Media of a prompt with `images` pictures, or with one clip of `frames` frames.

    Args:
        config: transformers config of the whole model.
        size: (height, width) of the pictures or frames in pixels. Default: the tower's own size,
            or 448 x 448 where it has none.
        images: number of pictures, 1 if there is no clip either.
        frames: frames of the clip. Families without clips read them as pictures.

    Raises:
        InputError: no rule for this family, or numbers that make no picture.
    """
    family = config.model_type
    if family not in _STILLS:
        raise InputError(
            f"no rule for the visual tokens of {family!r}; "
            f"there is one for: {', '.join(sorted(_STILLS))}"
        )
    own = getattr(config.vision_config, "image_size", None) or FREE_SIZE
    size = (side_of(own), side_of(own)) if size is None else size
    if not fits(size, tuple[int, ...]) or len(size) != 2 or min(size) < 1:
        raise InputError(f"image_size: expected positive sizes (height, width), got {shown(size)}")
    if images is not None and frames is not None:
        raise InputError(
            f"images={images} and frames={frames}: a plan has pictures or one clip, give one"
        )
    for name, value in (("images", images), ("frames", frames)):
        check_value(name, value, int | None)
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    count = images or frames or 1
    make = _STILLS[family] if frames is None else _CLIPS.get(family, _STILLS[family])
    return make(config, size, count)


def resized(config: Any, media: PlannedMedia, fit: Callable[[int, int, int], Size]) -> PlannedMedia:
    """The same media in fewer cells, where the encoder takes smaller pictures.

    Args:
        config: transformers config of the whole model.
        media: from `planned`.
        fit: (t, h, w) cells of an item -> (h, w) cells after scaling.

    Raises:
        InputError: the family's processor cuts pictures into tiles of one size.
    """
    vision = config.vision_config
    if media.shapes.grids:
        unit = vision.spatial_merge_size
        cell = [(t, *fit(t, h // unit, w // unit)) for t, h, w in media.shapes.grids]
        return _grids(config, [(t, h * unit, w * unit) for t, h, w in cell])
    if config.model_type not in ("llava", "paligemma"):
        raise InputError(
            f"{config.model_type} takes tiles of one size, so its pictures cannot be scaled down"
        )
    patch = side_of(vision.patch_size)
    side = side_of(vision.image_size) // patch
    rows, columns = fit(1, side, side)
    shapes = replace(media.shapes, size=(rows * patch, columns * patch))
    return PlannedMedia(shapes, [rows * columns + kept_cls(config)] * len(media.items))


def _crops(config: Any, size: Size, count: int) -> PlannedMedia:
    """One crop per picture; the projector decides how many tokens it becomes."""
    return PlannedMedia(MediaShapes(crops=count), [_crop_tokens(config)] * count)


def _crop_tokens(config: Any) -> int:
    """Tokens of one crop after the projector."""
    patches = cells(config, MediaShapes())
    if config.model_type == "gemma3":
        return int(config.mm_tokens_per_image)
    if config.model_type == "internvl":
        return int(patches * config.downsample_ratio**2)
    if config.model_type in ("smolvlm", "idefics3"):
        return int(patches // config.scale_factor**2)
    if config.model_type == "paligemma":
        return patches
    return patches + kept_cls(config)


def _anyres(config: Any, size: Size, count: int) -> PlannedMedia:
    """LLaVA-NeXT: an overview and tiles, unpadded, with a newline token after every row."""
    tile = side_of(config.vision_config.image_size)
    side = tile // side_of(config.vision_config.patch_size)
    tiles = anyres_tiles(size, config.image_grid_pinpoints, tile)
    rows, columns = _unpadded(size, tiles[0] * side, tiles[1] * side)
    limit = getattr(config, "vision_aspect_ratio", "")  # OneVision: "anyres_max_9"
    if limit:
        ratio = sqrt(rows * columns / (int(limit.removeprefix("anyres_max_")) * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    tokens = side * side + rows * (columns + 1)
    return PlannedMedia(MediaShapes(crops=count * (1 + prod(tiles))), [tokens] * count)


def _unpadded(size: Size, rows: int, columns: int) -> tuple[int, int]:
    """The part of a rows x columns grid that a padded picture of `size` fills."""
    height, width = size
    if width / height > columns / rows:
        inner = int(round(height * columns / width, 7))
        return rows - (rows - inner) // 2 * 2, columns
    inner = int(round(width * rows / height, 7))
    return rows, columns - (columns - inner) // 2 * 2


def _onevision(config: Any, size: Size, count: int) -> PlannedMedia:
    """One picture is tiled; several pictures are one crop and one newline token each."""
    if count == 1:
        return _anyres(config, size, count)
    tokens = cells(config, MediaShapes()) + 1
    return PlannedMedia(MediaShapes(crops=count), [tokens] * count)


def _onevision_clip(config: Any, size: Size, frames: int) -> PlannedMedia:
    """Frames pooled by 2 x 2 (rounded up), one newline token at the end."""
    side = ceil(isqrt(cells(config, MediaShapes())) / 2)
    return PlannedMedia(MediaShapes(frames=frames), [frames * side * side + 1])


def _next_video_clip(config: Any, size: Size, frames: int) -> PlannedMedia:
    """Frames pooled by the stride of the config, no newline tokens."""
    side = isqrt(cells(config, MediaShapes())) // config.spatial_pool_stride
    return PlannedMedia(MediaShapes(frames=frames), [frames * side * side])


def _internvl(config: Any, size: Size, count: int) -> PlannedMedia:
    """1 to 12 tiles in the nearest aspect ratio, and an overview if there are several."""
    tile = side_of(config.vision_config.image_size)
    number = prod(_tiling(size, tile, most=12))
    number += number > 1
    return PlannedMedia(MediaShapes(crops=number * count), [number * _crop_tokens(config)] * count)


def _tiling(size: Size, tile: int, most: int) -> tuple[int, int]:
    """(columns, rows) nearest in aspect ratio; among equals more tiles, up to twice the area."""
    wide, high = range(1, most + 1), range(1, most + 1)
    grids = sorted(((w, h) for w in wide for h in high if w * h <= most), key=prod)
    best, gap = (1, 1), float("inf")
    for grid in grids:
        apart = abs(size[1] / size[0] - grid[0] / grid[1])
        roomy = size[0] * size[1] > 0.5 * tile * tile * prod(grid)
        if apart < gap or (apart == gap and roomy):
            best, gap = grid, apart
    return best


def _smolvlm(config: Any, size: Size, count: int) -> PlannedMedia:
    """Scaled to 4 tiles on the longer side (4096 px at most), tiled, and an overview."""
    tile = side_of(config.vision_config.image_size)
    long = min(4 * tile, 4096)
    short = int(long / (max(size) / min(size)))
    tiles = ceil(long / tile) * ceil(short / tile)
    crops = (tiles + 1 if tiles > 1 else 1) * count
    return PlannedMedia(MediaShapes(crops=crops), [_crop_tokens(config)] * crops)


def _qwen(config: Any, size: Size, count: int) -> PlannedMedia:
    """Each picture at its own size, rounded to whole cells within the pixel limits."""
    grid = _grid(config, size, 1, _PIXELS[config.model_type])
    return _grids(config, [grid] * count)


def _qwen_clip(config: Any, size: Size, frames: int) -> PlannedMedia:
    """Frames in pairs, limits per frame."""
    return _grids(config, [_grid(config, size, frames, (128 * 28 * 28, 768 * 28 * 28))])


def _qwen3_clip(config: Any, size: Size, frames: int) -> PlannedMedia:
    """Frames in pairs, limits for the whole clip."""
    if frames < 2:
        raise InputError(f"a Qwen3-VL clip has at least 2 frames, got {frames}")
    limits = (4096 / frames, 25165824 / frames)
    return _grids(config, [_grid(config, size, frames, limits)])


def _grid(
    config: Any, size: Size, frames: int, limits: tuple[float, float]
) -> tuple[int, int, int]:
    """(t, h, w) patches of a picture whose area is brought within `limits` pixels."""
    vision = config.vision_config
    cell = vision.patch_size * vision.spatial_merge_size
    if max(size) > 200 * min(size):
        raise InputError(f"{config.model_type} takes aspect ratios up to 200, got {size} pixels")
    sides = [round(x / cell) * cell for x in size]
    if prod(sides) > limits[1]:
        shrink = sqrt(prod(size) / limits[1])
        sides = [max(cell, floor(x / shrink / cell) * cell) for x in size]
    elif prod(sides) < limits[0]:
        grow = sqrt(limits[0] / prod(size))
        sides = [ceil(x * grow / cell) * cell for x in size]
    patch = vision.patch_size
    return ceil(frames / vision.temporal_patch_size), sides[0] // patch, sides[1] // patch


def _grids(config: Any, grids: list[tuple[int, int, int]]) -> PlannedMedia:
    unit = config.vision_config.spatial_merge_size**2
    return PlannedMedia(MediaShapes(grids=tuple(grids)), [prod(grid) // unit for grid in grids])


_PIXELS = {
    "qwen2_vl": (3136, 12845056),
    "qwen2_5_vl": (3136, 12845056),
    "qwen3_vl": (65536, 16777216),
}
"""Smallest and largest area of a picture in pixels."""

_Rule = Callable[[Any, Size, int], PlannedMedia]

_STILLS: dict[str, _Rule] = {
    "gemma3": _crops,
    "idefics3": _smolvlm,
    "internvl": _internvl,
    "llava": _crops,
    "llava_next": _anyres,
    "llava_next_video": _anyres,
    "llava_onevision": _onevision,
    "paligemma": _crops,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "smolvlm": _smolvlm,
}

_CLIPS: dict[str, _Rule] = {
    "internvl": _crops,
    "llava_next_video": _next_video_clip,
    "llava_onevision": _onevision_clip,
    "qwen2_vl": _qwen_clip,
    "qwen2_5_vl": _qwen_clip,
    "qwen3_vl": _qwen3_clip,
    "smolvlm": _crops,
}
