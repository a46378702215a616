"""Visual tokens of each prompt of a batch, before and after all reducers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mmtok.models.pixels import PIXELS

if TYPE_CHECKING:
    from mmtok.models.reduction import Reduction


def tokens_per_prompt(reduction: Reduction, prompts: Tensor) -> list[tuple[int, int]]:
    """(visual tokens in, out) of each prompt of a batch.

    Args:
        reduction: what became of the batch.
        prompts: (B, S) token ids as the processor made them: where pictures were made smaller,
            `reduction.inputs` has fewer.
    """
    config = reduction.model.config
    tokens = [getattr(config, f"{kind}_token_id", None) for kind in PIXELS]
    seen = sum((prompts == token).sum(1) for token in tokens if token is not None)
    kept = [0] * len(prompts)
    length = reduction.inputs["input_ids"].shape[1]
    for part in reduction.media:
        for places, left in zip(part.places, part.kept, strict=True):
            kept[int(places[0]) // length] += len(left)
    return list(zip(seen.tolist(), kept, strict=True))
