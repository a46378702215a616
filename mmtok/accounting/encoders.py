"""Closed forms for vision towers and projectors, per model family.

For n tokens of width d and FFN width m, a ViT layer costs 2 n (4 d d + 2 d m) + 4 n n d (3 d m with
a gated FFN); attention is quadratic per crop, per frame, or per window. Every layer of a tower is
counted, also where features come from an earlier one: transformers runs them all. SigLIP's pooling
head is paid for wherever the config has it, though no model here reads it.

Sources: the modeling files of transformers 5.24; equal to torch's counter on tiny models.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from mmtok.accounting.shapes import MediaShapes, cells, side_of, window_sides
from mmtok.errors import InputError

CLS_TOKENS = {
    "clip_vision_model": 1,
    "internvl_vision": 1,
    "siglip_vision_model": 0,
    "smolvlm_vision": 0,
    "idefics3_vision": 0,
}
"""Fixed-size towers with a closed form, and how many tokens they add to the patches."""


def encoder_flops(config: Any, shapes: MediaShapes) -> int:
    """FLOPs of vision tower and projector for the media in `shapes`.

    Args:
        config: transformers config of the whole model.
        shapes: what reaches the tower, from `media_shapes` (tensors) or `planned` (sizes).

    Raises:
        InputError: no closed form for this family or its vision tower.
    """
    if config.model_type not in _FAMILIES:
        raise InputError(
            f"no closed form for the encoder of {config.model_type!r}; "
            f"there is one for: {', '.join(sorted(_FAMILIES))}"
        )
    return int(_FAMILIES[config.model_type](config, shapes))


def vit_layer(n: int, d: int, m: int, matrices: int = 2) -> int:
    """Linear part of one ViT layer: attention projections and an FFN of 2 or 3 matrices."""
    return 2 * n * (4 * d * d + matrices * d * m)


def fixed_tower(vision: Any, patches: int) -> int:
    """One crop of `patches` patches through a tower whose attention spans the crop."""
    if vision.model_type not in CLS_TOKENS:
        raise InputError(
            f"no closed form for vision tower {vision.model_type!r}; "
            f"there is one for: {', '.join(CLS_TOKENS)}"
        )
    d, m, p = vision.hidden_size, vision.intermediate_size, side_of(vision.patch_size)
    n = patches + CLS_TOKENS[vision.model_type]
    total = 2 * vision.num_channels * p * p * d * patches
    total += vision.num_hidden_layers * (vit_layer(n, d, m) + 4 * n * n * d)
    if getattr(vision, "vision_use_head", False):
        total += 2 * (2 * d * d + 2 * n * d * d) + 4 * n * d + 4 * d * m
    return int(total)


def _llava(config: Any, shapes: MediaShapes) -> int:
    """Tower, then two linear layers over the patches of every crop."""
    patches = cells(config, shapes)
    read = patches + kept_cls(config)
    crop = fixed_tower(config.vision_config, patches) + _llava_projector(config, read)
    return (shapes.crops + shapes.frames) * crop


def _llava_next_video(config: Any, shapes: MediaShapes) -> int:
    """As LLaVA; the frames of a video are pooled before the projector."""
    if shapes.frames and config.spatial_pool_mode == "conv":
        raise InputError("no closed form for LLaVA-NeXT-Video with spatial_pool_mode='conv'")
    patches = cells(config, shapes)
    pooled = (round(patches**0.5) // config.spatial_pool_stride) ** 2
    tower = fixed_tower(config.vision_config, patches)
    per_crop = tower + _llava_projector(config, patches + kept_cls(config))
    per_frame = tower + _llava_projector(config, pooled)
    return shapes.crops * per_crop + shapes.frames * per_frame


def kept_cls(config: Any) -> int:
    """CLS tokens that reach the projector: only where the feature strategy is "full"."""
    full = getattr(config, "vision_feature_select_strategy", None) == "full"
    return CLS_TOKENS.get(config.vision_config.model_type, 0) if full else 0


def _llava_projector(config: Any, tokens: int) -> int:
    layer = config.vision_feature_layer
    joined = 1 if isinstance(layer, int) else len(layer)
    d, wide = config.vision_config.hidden_size * joined, config.text_config.hidden_size
    return int(2 * tokens * (d * wide + wide * wide))


def _internvl(config: Any, shapes: MediaShapes) -> int:
    """Tower, pixel shuffle, two linear layers."""
    patches = cells(config, shapes)
    shrink = int(1 / config.downsample_ratio) ** 2
    d, wide = config.vision_config.hidden_size * shrink, config.text_config.hidden_size
    projector = int(2 * (patches // shrink) * (d * wide + wide * wide))
    return (shapes.crops + shapes.frames) * (fixed_tower(config.vision_config, patches) + projector)


def _smolvlm(config: Any, shapes: MediaShapes) -> int:
    """Tower, pixel shuffle, one linear layer: every patch meets its own slice of the weight."""
    patches = cells(config, shapes)
    wide = config.vision_config.hidden_size * config.text_config.hidden_size
    projector = int(2 * patches * wide)
    return (shapes.crops + shapes.frames) * (fixed_tower(config.vision_config, patches) + projector)


def _gemma3(config: Any, shapes: MediaShapes) -> int:
    """SigLIP, average pooling (free by convention), one matrix."""
    patches = cells(config, shapes)
    wide = config.vision_config.hidden_size * config.text_config.hidden_size
    projector = int(2 * config.mm_tokens_per_image * wide)
    return shapes.crops * (fixed_tower(config.vision_config, patches) + projector)


def _paligemma(config: Any, shapes: MediaShapes) -> int:
    """SigLIP and one linear layer."""
    patches = cells(config, shapes)
    wide = config.vision_config.hidden_size * config.vision_config.projection_dim
    projector = int(2 * patches * wide)
    return shapes.crops * (fixed_tower(config.vision_config, patches) + projector)


def _qwen2_vl(config: Any, shapes: MediaShapes) -> int:
    """Attention per frame; FFN of mlp_ratio times the width; one merger."""
    v = config.vision_config
    d, m = v.embed_dim, int(v.embed_dim * v.mlp_ratio)
    return sum(
        _patch_embedding(v, d, prod(grid))
        + v.depth * (vit_layer(prod(grid), d, m) + _frame_attention(d, grid))
        + _merger(v, d, v.hidden_size, prod(grid))
        for grid in shapes.grids
    )


def _qwen2_5_vl(config: Any, shapes: MediaShapes) -> int:
    """Gated FFN; attention inside windows, except in the `fullatt_block_indexes` layers."""
    v = config.vision_config
    d = v.hidden_size
    full = len(set(v.fullatt_block_indexes) & set(range(v.depth)))
    total = 0
    for grid in shapes.grids:
        n = prod(grid)
        total += _patch_embedding(v, d, n) + _merger(v, d, v.out_hidden_size, n)
        total += v.depth * vit_layer(n, d, v.intermediate_size, matrices=3)
        total += full * _frame_attention(d, grid)
        rows, columns = (sum(a * a for a in window_sides(v, side)) for side in grid[1:])
        total += (v.depth - full) * 4 * d * grid[0] * rows * columns
    return total


def _qwen3_vl(config: Any, shapes: MediaShapes) -> int:
    """Attention per frame; one merger for the output and one per deepstack layer."""
    v = config.vision_config
    d = v.hidden_size
    mergers = 1 + len(v.deepstack_visual_indexes)
    return sum(
        _patch_embedding(v, d, prod(grid))
        + v.depth * (vit_layer(prod(grid), d, v.intermediate_size) + _frame_attention(d, grid))
        + mergers * _merger(v, d, v.out_hidden_size, prod(grid))
        for grid in shapes.grids
    )


def _patch_embedding(v: Any, d: int, n: int) -> int:
    p, t = side_of(v.patch_size), side_of(v.temporal_patch_size)
    return int(2 * v.in_channels * t * p * p * d * n)


def _frame_attention(d: int, grid: tuple[int, int, int]) -> int:
    return 4 * d * grid[0] * (grid[1] * grid[2]) ** 2


def _merger(v: Any, d: int, out: int, n: int) -> int:
    unit = v.spatial_merge_size**2
    return int(2 * (n // unit) * (unit * d * unit * d + unit * d * out))


_FAMILIES: dict[str, Callable[[Any, MediaShapes], int]] = {
    "gemma3": _gemma3,
    "internvl": _internvl,
    "llava": _llava,
    "llava_next": _llava,
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava,
    "paligemma": _paligemma,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "idefics3": _smolvlm,
    "smolvlm": _smolvlm,
}
