"""Which pixels of a model's inputs belong to which image or clip, and names that follow from them.

What a seeded method draws for a picture may depend on nothing but the picture, or a batch would not
give what its items give one by one. Features will not do: a batch rounds them otherwise. A counter
of pictures will not do: it knows what came before. Pixels come from the processor, bit for bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mmtok.models.families import Family, Inputs, Layout

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
SAMPLES = 4096  # pixels read of an item: two that agree in all of these are taken for one


def names_of(
    kind: str,
    family: Family,
    places: Sequence[Tensor],
    inputs: Inputs,
    layouts: list[Layout],
    shown: bool,
) -> tuple[str, ...]:
    """Name items by their order within their own prompt, and on request by what they show.

    Args:
        kind: "image" or "video".
        family: of the model.
        places: per item, (n,) int64 places of its placeholders in the flattened (B*S) prompt.
        inputs: of the model.
        layouts: of the items.
        shown: whether a seeded method will draw by the name; reading pixels takes a moment.
    """
    seen: dict[int, int] = {}
    names = []
    pixels = pixels_of(kind, family, inputs, layouts) if shown else [None] * len(places)
    for place, own in zip(places, pixels, strict=True):
        row = int(place[0]) // inputs["input_ids"].shape[1]
        seen[row] = seen.get(row, -1) + 1
        name = f"{kind}{seen[row]}"
        names.append(name if own is None else f"{name}-{digest(own)}")
    return tuple(names)


def pixels_of(kind: str, family: Family, inputs: Inputs, layouts: list[Layout]) -> list[Tensor]:
    """The pixels of each item, in the order of the items.

    Tiles of zeros, with which a processor fills up pictures of fewer tiles, are left out: how many
    there are depends on the other pictures of a batch.

    Args:
        kind: "image" or "video".
        family: of the model.
        inputs: of the model.
        layouts: of the items.
    """
    pixels: Tensor = inputs[PIXELS[kind]]
    grid = inputs.get(f"{kind}_grid_thw")
    if grid is not None:  # patches of all items in one list
        return list(torch.split(pixels, grid.prod(1).tolist()))
    if family.items == "tile":  # (prompts, tiles, C, H, W)
        return list(filled(pixels.flatten(0, 1)))
    if len(pixels) != len(layouts):  # tiles of all items in one list
        return list(torch.split(pixels, [layout.grid[0] for layout in layouts]))
    return [filled(item) if item.ndim == 4 else item for item in pixels]


def filled(tiles: Tensor) -> Tensor:
    """Those of (T, C, H, W) tiles that are not all zero."""
    return tiles[tiles.flatten(1).any(1)]


def digest(pixels: Tensor) -> str:
    """Eight hexadecimal digits that follow from the values alone."""
    flat = pixels.flatten()
    few = flat[:: max(len(flat) // SAMPLES, 1)].float().cpu().contiguous()
    return f"{zlib.crc32(few.numpy().tobytes()):08x}"
