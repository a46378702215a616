"""What merging inside a vision tower saves there, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmtok.accounting.encoders import CLS_TOKENS
from mmtok.accounting.planned import PlannedMedia
from mmtok.accounting.shapes import cells

if TYPE_CHECKING:
    from mmtok.models.reduction import Reduction
    from mmtok.pruning import Reducer


def merged_saving(vision: Any, patches: int, lengths: Sequence[tuple[int, int]]) -> int:
    """FLOPs that one crop of `patches` patches saves where tokens merge inside its tower.

    Args:
        vision: config of the tower, one of fixed size.
        patches: of the crop.
        lengths: per layer, tokens that its attention and its MLP read.
    """
    n = patches + CLS_TOKENS[vision.model_type]
    d, m = int(vision.hidden_size), int(vision.intermediate_size)

    def layer(attended: int, passed: int) -> int:
        return 8 * attended * d * d + 4 * attended**2 * d + 4 * passed * d * m

    return sum(layer(n, n) - layer(*pair) for pair in lengths)


def measured_saving(done: Reduction) -> int:
    """FLOPs that the towers of the last prompt saved, by the lengths they ran at."""
    vision = done.model.config.vision_config
    return sum(
        crops * merged_saving(vision, patches, tower.lengths)
        for part in done.media
        if (tower := part.tower) is not None
        for crops, patches in [tower.crops.visible.shape]
    )


def planned_merging(
    config: Any, reducers: Sequence[Reducer], media: PlannedMedia
) -> tuple[int, int]:
    """FLOPs that merging saves inside the tower, and those that it costs.

    None are saved for AnyRes crops, where the padding decides: an upper bound.
    """
    from mmtok.models.crops import layers_read
    from mmtok.pruning.base import overrides

    saved = cost = 0
    vision, crops = config.vision_config, media.shapes.crops
    for reducer in reducers:
        if not overrides(reducer, "in_encoder"):
            continue
        patches = cells(config, media.shapes)
        if media.items != [patches] * crops:
            continue
        prefix = CLS_TOKENS[vision.model_type]
        width = vision.hidden_size // vision.num_attention_heads
        left, flops = reducer.encoder_schedule(
            layers_read(config, {}), patches, key_width=width, prefix=prefix
        )
        left += left[-1:] * (vision.num_hidden_layers - len(left))
        lengths = [(a + prefix, b + prefix) for a, b in zip([patches, *left], left, strict=False)]
        saved += crops * merged_saving(vision, patches, lengths)
        cost += crops * flops
    return saved, cost
