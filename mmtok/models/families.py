"""What differs between families of vision-language models, in one table.

Nothing else in mmtok asks for a model's type. A layout says which (t, h, w) cell of the picture or
clip each visual token came from; the model's own code stays untouched.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.registry import unknown

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Where the n tokens of one item came from.

    Attributes:
        position: (n, 3) int64 (t, h, w). A newline token stands one column right of its row.
        grid: (t, h, w) size.
        overview: how many leading tokens are the overview of an AnyRes image; 0 if none.
    """

    position: Tensor
    grid: tuple[int, int, int]
    overview: int = 0


@dataclass(frozen=True)
class Family:
    """Facts of one family.

    Attributes:
        image: model, inputs, tokens per item -> layout of each image.
        video: the same for clips; None where the family reads a clip as several images.
        tower: attribute path from the base model to the vision tower's layers.
        has_cls: whether the tower has a CLS token whose attention can be read.
        flat: whether `forward` wants one tensor of features instead of one per item.
        items: what one item is: an entry of `pooler_output`, a run of placeholders in the prompt
            (tiles of one image), or a tile where the prompt does not say which belong together.
        deepstack: whether the encoder hands features to the first decoder layers as well.
        has_keys: whether the tower's last layer attends over each crop as a whole, so that its
            keys can be read.
        patch_tokens: whether a visual token of an image is one patch of the tower, which takes a
            mask, so that patches can be merged inside it.
        resize: how a smaller picture can be given to the encoder: bilinear "pixels" with
            interpolated positions, a smaller patch "grid", or not at all.
    """

    image: Callable[[Any, Inputs, list[int]], list[Layout]]
    tower: str
    video: Callable[[Any, Inputs, list[int]], list[Layout]] | None = None
    has_cls: bool = False
    flat: bool = False
    items: Literal["entry", "run", "tile"] = "entry"
    deepstack: bool = False
    has_keys: bool = True
    patch_tokens: bool = False
    resize: Literal["pixels", "grid"] | None = None

    @property
    def facts(self) -> frozenset[str]:
        """What can be read of a patch besides its feature, under the names of VisualTokens."""
        known = {
            "cls_attention": self.has_cls,
            "cls_joint": self.has_cls,
            "keys": self.has_keys,
        }
        return frozenset(name for name, there in known.items() if there)


def cells(t: int, h: int, w: int) -> Tensor:
    """(t*h*w, 3) int64 positions in raster order."""
    axes = [torch.arange(size) for size in (t, h, w)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def _square(model: Any, inputs: Inputs, counts: list[int]) -> list[Layout]:
    """Every item is one picture: its grid of patches, or a square that pools them."""
    patch, (height, width) = (
        model.config.vision_config.patch_size,
        inputs["pixel_values"].shape[-2:],
    )
    h, w = height // patch, width // patch
    if h * w != counts[0]:
        h = w = math.isqrt(counts[0])
    return [Layout(cells(1, h, w), (1, h, w)) for _ in counts]


def _tiles(model: Any, inputs: Inputs, counts: list[int]) -> list[Layout]:
    """InternVL: square tiles, t is the tile; after several tiles comes the overview."""
    config = model.config
    per_side = config.vision_config.image_size[0] // config.vision_config.patch_size[0]
    side = int(per_side * config.downsample_ratio)
    tile = side * side
    return [Layout(cells(n // tile, side, side), (n // tile, side, side)) for n in counts]


def _anyres(model: Any, inputs: Inputs, counts: list[int]) -> list[Layout]:
    """The overview at t = 0, then the full-resolution picture at t = 1, rows ended by newlines."""
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    flags = pack_anyres(model, inputs, len(counts), None)
    return [_anyres_item(flag[:, 0] > 0.5, side) for flag in flags]


def _anyres_item(newline: Tensor, side: int) -> Layout:
    base = side * side
    overview = cells(1, side, side)
    if len(newline) <= base + 1:  # one view: the overview is the picture
        end = torch.tensor([[0, side - 1, side]])[: len(newline) - base]
        return Layout(torch.cat([overview, end]), (1, side, side))
    mark = newline[base:].cpu()
    width = int(mark.long().argmax()) + 1
    rows = len(mark) // width
    detail = cells(1, rows, width)
    detail[:, 0] = 1
    return Layout(torch.cat([overview, detail]), (2, rows, width - 1), overview=base)


def anyres_crops(model: Any, inputs: Inputs, images: int) -> list[int]:
    """How many crops each image becomes; several images of one prompt may stay whole."""
    count = sys.modules[type(model).__module__].image_size_to_num_patches
    alone = [n == 1 for n in inputs.get("batch_num_images", [1] * images) for _ in range(int(n))]
    pinpoints, side = model.config.image_grid_pinpoints, model.config.vision_config.image_size
    return [
        count(size, pinpoints, side) if tiled else 1
        for size, tiled in zip(inputs["image_sizes"], alone, strict=True)
    ]


def pack_anyres(model: Any, inputs: Inputs, images: int, values: Tensor | None) -> list[Tensor]:
    """Send values of patches the way the model sends its features: unpadded, with newlines.

    Args:
        model: the base model.
        inputs: the model's inputs.
        images: how many there are.
        values: (crops, patches, C) values of all crops in order, or None.

    Returns:
        One (n, 1 + C) tensor per image: 1 at newline tokens, and the values of each token.
    """
    vision = model.config.vision_config
    crops = anyres_crops(model, inputs, images)
    if values is None:
        values = torch.zeros(sum(crops), (vision.image_size // vision.patch_size) ** 2, 0)
    channels = torch.nn.functional.pad(values, (1, 0))
    newline = torch.zeros(channels.shape[-1], device=values.device)
    newline[0] = 1
    strategy = getattr(model.config, "vision_feature_select_strategy", None)
    names = type(model).pack_image_features.__code__.co_varnames
    extra = (
        {"vision_feature_select_strategy": strategy}
        if "vision_feature_select_strategy" in names
        else {"vision_aspect_ratio": model.config.vision_aspect_ratio}
    )
    packed, _ = model.pack_image_features(
        torch.split(channels, crops), inputs["image_sizes"], image_newline=newline, **extra
    )
    return list(packed)


def _frames(model: Any, inputs: Inputs, counts: list[int]) -> list[Layout]:
    """Square frames, perhaps with one newline token at the end of the clip."""
    frames = inputs["pixel_values_videos"].shape[1]
    layouts = []
    for n in counts:
        side = math.isqrt(n // frames)
        end = torch.tensor([[frames - 1, side - 1, side]])[: n - frames * side * side]
        layouts.append(Layout(torch.cat([cells(frames, side, side), end]), (frames, side, side)))
    return layouts


def _patch_grid(key: str) -> Callable[[Any, Inputs, list[int]], list[Layout]]:
    def layout(model: Any, inputs: Inputs, counts: list[int]) -> list[Layout]:
        """Qwen-VL: the grid travels with the inputs, in patches before the spatial merge."""
        merge = model.config.vision_config.spatial_merge_size
        sizes = [(t, h // merge, w // merge) for t, h, w in inputs[key].tolist()]
        return [Layout(cells(*size), size) for size in sizes]

    return layout


_CLIP_TOWER = "vision_tower.encoder.layers"


class _PatchTokens(TypedDict):
    tower: str
    patch_tokens: bool


_CLIP: _PatchTokens = {"tower": _CLIP_TOWER, "patch_tokens": True}
_QWEN = {
    "image": _patch_grid("image_grid_thw"),
    "video": _patch_grid("video_grid_thw"),
    "tower": "visual.blocks",
    "has_keys": False,
    "resize": "grid",
}

FAMILIES: dict[str, Family] = {
    "llava": Family(image=_square, **_CLIP, has_cls=True, resize="pixels"),
    "llava_next": Family(image=_anyres, **_CLIP, has_cls=True),
    "llava_next_video": Family(image=_anyres, video=_frames, **_CLIP, has_cls=True),
    "llava_onevision": Family(image=_anyres, video=_frames, **_CLIP),
    "qwen2_vl": Family(**_QWEN),  # type: ignore[arg-type]
    "qwen2_5_vl": Family(**_QWEN),  # type: ignore[arg-type]
    "qwen3_vl": Family(**_QWEN, deepstack=True),  # type: ignore[arg-type]
    "internvl": Family(
        image=_tiles, tower="vision_tower.encoder.layer", has_cls=True, flat=True, items="run"
    ),
    "smolvlm": Family(image=_square, tower="vision_model.encoder.layers", items="tile"),
    "idefics3": Family(image=_square, tower="vision_model.encoder.layers", items="tile"),
    "gemma3": Family(image=_square, tower=_CLIP_TOWER, flat=True),
    "paligemma": Family(image=_square, **_CLIP, flat=True, resize="pixels"),
}


_INSIDE = {"processor": "model", "get_base_model": "get_base_model()", "module": "module"}
"""Attributes that give away a wrapper, and where it keeps the model."""


def family_of(model: Any) -> Family:
    """The facts of a loaded model's family.

    Raises:
        InputError: the family is not in the table; the message says what the table would need. Or
            no model with a language head, but a wrapper or a part of one.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    inside = next((where for name, where in _INSIDE.items() if hasattr(model, name)), None)
    if kind is None or inside or (kind in FAMILIES and not hasattr(model, "generate")):
        hint = f": pass its .{inside}" if inside else ""
        raise InputError(
            "expected a Hugging Face image-text-to-text model, with its generate(); "
            f"got {type(model).__name__}{hint}"
        )
    if kind not in FAMILIES:
        raise InputError(
            unknown("model family", kind, sorted(FAMILIES))
            + "; a new one needs its layout of visual tokens in mmtok/models/families.py"
        )
    return FAMILIES[kind]
