"""Which visual token every patch of the vision tower becomes, known before the tower runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.models.families import Family, Inputs, anyres_crops, pack_anyres
from mmtok.pruning.rank import apportion


@dataclass(frozen=True)
class Crops:
    """What the patches of the crops become.

    Attributes:
        origin: per item, (n,) int64 patch that each visual token was, counted over all crops; -1
            for a newline token.
        visible: (C, P) bool, patches that become visual tokens.
        target: (C,) int64 tokens that each crop keeps at least.
        grid: (rows, columns) of patches.
    """

    origin: list[Tensor]
    visible: Tensor
    target: Tensor
    grid: tuple[int, int]


def check_tower(name: str, config: Any, family: Family) -> None:
    """InputError unless patches merged inside the tower leave fewer visual tokens."""
    why = ""
    if not family.patch_tokens:
        why = "its visual tokens pool several patches, so merging patches leaves no fewer of them"
    elif not isinstance(_feature_layer(config), int):
        why = "it reads several layers of its vision tower, which would hold different groups"
    elif family.has_cls and config.vision_feature_select_strategy == "full":
        why = "CLS is one of its visual tokens"
    if why:
        raise InputError(f"{name} does not fit {config.model_type}: {why}")


def _feature_layer(config: Any) -> Any:
    return getattr(config, "vision_feature_layer", -1)


def layers_read(config: Any, inputs: Inputs) -> int:
    """How many of the tower's layers run up to the one whose output the model reads.

    Args:
        config: of the whole model.
        inputs: keyword arguments of its encoder, which may ask for another layer.

    Raises:
        InputError: none does.
    """
    asked = inputs.get("vision_feature_layer")
    layer = int(_feature_layer(config) if asked is None else asked)
    depth = int(config.vision_config.num_hidden_layers)
    count = layer if layer >= 0 else depth + 1 + layer
    if not 0 < count <= depth:
        raise InputError(f"nothing to merge: vision_feature_layer {layer} reads no layer's output")
    return count


def crops_of(model: Any, inputs: Inputs, keep_count: Callable[[int], int]) -> Crops:
    """Follow every patch of the inputs to its visual token, and share out the budget of each item.

    Args:
        model: a Hugging Face model with a language head.
        inputs: keyword arguments of its encoder.
        keep_count: visual tokens of an item -> tokens to keep.

    Raises:
        InputError: the model interpolates patches of these pictures.
    """
    vision, pixels = model.config.vision_config, inputs["pixel_values"]
    rows, columns = (side // vision.patch_size for side in pixels.shape[-2:])
    patches = rows * columns
    if "image_sizes" in inputs:
        count, origin = _packed(model, inputs, patches)
    else:
        count = len(pixels)
        origin = list(torch.arange(count * patches, device=pixels.device).view(count, patches))
    visible = torch.zeros(count * patches, dtype=torch.bool, device=pixels.device)
    visible[torch.cat(origin).clamp_min(0)] = True
    visible = visible.view(count, patches)
    seen = visible.sum(1).tolist()
    target = [0] * count
    for places in origin:
        crops = sorted({int(p) // patches for p in places.tolist() if p >= 0})
        sizes = [seen[crop] - 1 for crop in crops]
        total = min(keep_count(len(places)) - len(crops), sum(sizes))
        for crop, share in zip(crops, apportion(sizes, sizes, max(total, 0)), strict=True):
            target[crop] = share + 1
    return Crops(
        origin=origin,
        visible=visible,
        target=torch.tensor(target, device=pixels.device),
        grid=(rows, columns),
    )


def _packed(model: Any, inputs: Inputs, patches: int) -> tuple[int, list[Tensor]]:
    """How many crops there are, and which patch each AnyRes token was.

    Numbered patches go through the model's own packing. The numbers are shuffled, so that an
    interpolation between patches cannot look like one.
    """
    base = model.base_model
    images = len(inputs["image_sizes"])
    crops = sum(anyres_crops(base, inputs, images))
    device = inputs["pixel_values"].device
    order = torch.randperm(crops * patches, generator=torch.Generator().manual_seed(0))
    shuffled = order.double().view(crops, patches, 1).to(device)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).to(device)
    origin = []
    for item in pack_anyres(base, inputs, images, shuffled):
        newline, number = item[:, 0] > 0.5, item[:, 1]
        if bool((number != number.round()).any()):
            raise InputError(
                f"{model.config.model_type} interpolates between the patches of a picture this "
                "large, so they cannot be merged: pass a smaller picture"
            )
        origin.append(back[number.long()].masked_fill(newline, -1))
    return crops, origin
