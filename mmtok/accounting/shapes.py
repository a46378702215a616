"""What reaches the vision tower, read from the tensors of a processor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from mmtok.errors import InputError


@dataclass(frozen=True, kw_only=True)
class MediaShapes:
    """The media one forward sends through the vision tower.

    Attributes:
        crops: pictures, tiles or AnyRes crops of one size.
        frames: video frames of that size, where the family treats them differently.
        size: (height, width) of crops and frames in pixels. Default: the config's image size.
        grids: (t, h, w) patches of each image or video, for towers of free size (Qwen-VL).
    """

    crops: int = 0
    frames: int = 0
    size: tuple[int, int] | None = None
    grids: tuple[tuple[int, int, int], ...] = ()


def media_shapes(config: Any, inputs: Mapping[str, Any]) -> MediaShapes:
    """The shapes in what a processor returned: `pixel_values`, `image_grid_thw` and the like.

    Args:
        config: transformers config of the whole model.
        inputs: the processor's tensors. Pixels are (crops, 3, H, W), (B, crops, 3, H, W) or, for
            towers of free size, described by (items, 3) grids.

    Raises:
        InputError: AnyRes crops without `image_sizes`.
    """
    grids = tuple(
        (int(t), int(h), int(w))
        for name in ("image_grid_thw", "video_grid_thw")
        if inputs.get(name) is not None
        for t, h, w in inputs[name].tolist()
    )
    if grids:
        return MediaShapes(grids=grids)
    pixels, clips = inputs.get("pixel_values"), inputs.get("pixel_values_videos")
    some = pixels if pixels is not None else clips
    if some is None:
        return MediaShapes()
    return MediaShapes(
        crops=0 if pixels is None else _real_crops(config, pixels, inputs),
        frames=0 if clips is None else clips.shape[:-3].numel(),
        size=(some.shape[-2], some.shape[-1]),
    )


def _real_crops(config: Any, pixels: Any, inputs: Mapping[str, Any]) -> int:
    """Crops the tower sees: those that only pad a batch are dropped by the model."""
    if pixels.ndim == 4:
        return int(pixels.shape[0])
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    if pinpoints is None:  # SmolVLM, Idefics3: padding crops are all zero
        return max(1, int((pixels != 0).flatten(2).any(-1).sum()))
    if inputs.get("image_sizes") is None:
        raise InputError("AnyRes pixel_values need image_sizes to tell crops from padding")
    sizes = inputs["image_sizes"].tolist()
    split = [True] * len(sizes)
    if inputs.get("batch_num_images") is not None:
        split = [n == 1 for n in inputs["batch_num_images"].tolist() for _ in range(n)]
    tile = side_of(config.vision_config.image_size)
    return sum(
        1 + tiles[0] * tiles[1] if cut else 1
        for size, cut in zip(sizes, split, strict=True)
        for tiles in [anyres_tiles((size[0], size[1]), pinpoints, tile)]
    )


def anyres_tiles(
    size: tuple[int, int], pinpoints: Iterable[Iterable[int]], tile: int
) -> tuple[int, int]:
    """(rows, columns) of AnyRes tiles for an image of `size` (height, width) in pixels.

    The pinpoint that keeps most of the image's pixels wins; among equals, the smallest
    (`select_best_resolution` in transformers).
    """
    height, width = size

    def rank(pinpoint: tuple[int, int]) -> tuple[int, int]:
        h, w = pinpoint
        scale = min(w / width, h / height)
        useful = min(int(width * scale) * int(height * scale), width * height)
        return useful, -(h * w - useful)

    best = max(((h, w) for h, w in pinpoints), key=rank)
    return ceil(best[0] / tile), ceil(best[1] / tile)


def side_of(size: Any) -> int:
    """The side of something square given as a number or as a pair."""
    return int(size if isinstance(size, int) else size[0])


def cells(config: Any, shapes: MediaShapes) -> int:
    """Patches of one crop or frame."""
    vision = config.vision_config
    height, width = shapes.size or (side_of(vision.image_size),) * 2
    patch = side_of(vision.patch_size)
    return (height // patch) * (width // patch)


def window_sides(vision: Any, side: int) -> list[int]:
    """Qwen2.5-VL: sides, in patches, of the attention windows along `side` patches."""
    window = vision.window_size // vision.patch_size // vision.spatial_merge_size
    window *= vision.spatial_merge_size
    return [min(window, side - start) for start in range(0, side, window)]
