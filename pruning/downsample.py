"""A smaller picture: the baseline that saves in the vision tower as well.

The pixels shrink to the largest size of the same shape whose tokens fit the budget; the model then
runs as if it had been given that picture. Fixed-resolution CLIP and SigLIP towers get their
position embeddings interpolated by the tower's own code, Qwen-VL a smaller grid of patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mmtok.errors import InputError
from mmtok.models.families import family_of
from mmtok.pruning.base import Reducer


@dataclass(frozen=True, kw_only=True)
class Downsample(Reducer):
    """Give the encoder a picture that makes at most k tokens: as many as its shape allows.

    A k below one row and one column of the grid cannot be reached; one token is the least.
    """

    def encoder_grid(self, t: int, h: int, w: int) -> tuple[int, int]:
        """Rows and columns of cells that a picture, or each of t frames, of h x w cells keeps."""
        return fit(h, w, max(self.keep_count(t * h * w) // t, 1))

    def before_encoder(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Shrink every image and clip, and drop the placeholders that are left over.

        Raises:
            InputError: the family's processor cuts pictures into tiles of one size, or the inputs
                hold position ids.
        """
        if self.keeps_all:
            return inputs
        how = family_of(model).resize
        if how == "pixels":
            return self._pixels(model, inputs)
        if how == "grid":
            return self._grids(model, inputs)
        raise InputError(
            f"downsample does not fit {model.config.model_type}: its processor cuts pictures into "
            "tiles of one size; resize the picture itself instead"
        )

    def _pixels(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        vision, pixels = model.config.vision_config, inputs["pixel_values"]
        h, w = pixels.shape[-2] // vision.patch_size, pixels.shape[-1] // vision.patch_size
        rows, columns = self.encoder_grid(1, h, w)
        if (rows, columns) == (h, w):
            return inputs
        size = (rows * vision.patch_size, columns * vision.patch_size)
        small = inputs | {"pixel_values": _shrink(pixels, size), "interpolate_pos_encoding": True}
        return _drop_placeholders(model, small, "image", [(h * w, rows * columns)] * len(pixels))

    def _grids(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        for kind, key in {"image": "pixel_values", "video": "pixel_values_videos"}.items():
            if inputs.get(key) is None:
                continue
            name = f"{kind}_grid_thw"
            patches, grids, counts = [], [], []
            merge = model.config.vision_config.spatial_merge_size
            sizes = inputs[name].tolist()
            parts = torch.split(inputs[key], [t * h * w for t, h, w in sizes])
            for part, (t, h, w) in zip(parts, sizes, strict=True):
                n = t * h * w // merge**2
                rows, columns = self.encoder_grid(t, h // merge, w // merge)
                grids.append([t, rows * merge, columns * merge])
                counts += [(n // t, rows * columns)] * t  # frame by frame: text may stand between
                patches.append(_resize_patches(model, part, (t, h, w), grids[-1]))
            grid = torch.tensor(grids, device=inputs[name].device)
            inputs = inputs | {key: torch.cat(patches), name: grid}
            inputs = _drop_placeholders(model, inputs, kind, counts)
        return inputs


def fit(h: int, w: int, k: int) -> tuple[int, int]:
    """Rows and columns of the largest grid shaped like h x w that has at most k cells."""
    scale = min(math.sqrt(k / (h * w)), 1.0)
    rows = min(max(round(h * scale), 1), k)
    columns = min(max(round(w * scale), 1), k // rows)
    return rows, columns


def _shrink(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    out = interpolate(pixels.float(), size=size, mode="bilinear", antialias=True)
    return out.to(pixels.dtype)


def _resize_patches(
    model: Any, patches: Tensor, old: tuple[int, int, int], new: list[int]
) -> Tensor:
    """Qwen-VL's flattened patches (t*h*w, C*tp*p*p), ordered in merge blocks, at a new size."""
    vision = model.config.vision_config
    merge, side, frames = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    t, h, w = old
    x = patches.view(t, h // merge, w // merge, merge, merge, 3, frames, side, side)
    x = x.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * frames, 3, h * side, w * side)
    _, h, w = new
    x = _shrink(x, (h * side, w * side))
    x = x.view(t, frames, 3, h // merge, merge, side, w // merge, merge, side)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1)


def _drop_placeholders(
    model: Any, inputs: dict[str, Any], kind: str, counts: list[tuple[int, int]]
) -> dict[str, Any]:
    """Keep the first `new` of each picture's `old` placeholders; pad the rows on the left again."""
    from mmtok.models.encoder_seam import compact

    if inputs.get("position_ids") is not None:
        raise InputError(
            "position_ids of the whole prompt do not fit the smaller pictures of downsample: "
            "leave them out, and the model counts for itself"
        )
    ids = inputs["input_ids"]
    places = (ids == getattr(model.config, f"{kind}_token_id")).flatten().nonzero().squeeze(1)
    keep = torch.ones_like(ids, dtype=torch.bool)
    for part, (_, new) in zip(torch.split(places, [old for old, _ in counts]), counts, strict=True):
        keep.view(-1)[part[new:]] = False
    mask = inputs.get("attention_mask")
    values = {
        "input_ids": (ids, model.generation_config.pad_token_id or 0),
        "attention_mask": (torch.ones_like(ids) if mask is None else mask, 0),
    }
    for name, fill in {"token_type_ids": 0, "mm_token_type_ids": 0, "labels": -100}.items():
        if inputs.get(name) is not None:
            values[name] = (inputs[name], fill)
    return inputs | compact(keep, values)
