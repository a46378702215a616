"""FastV: behind the second decoder layer, half the visual tokens are enough (arXiv 2403.06764).

Authors' repository: pkunlp-icler/FastV. What the last token attends to least in layer K - 1, mean
over heads, does not enter layer K. As in the released code the last token alone asks; the paper's
text averages the rows of all tokens. Survivors keep their positions.

Deviations: the budget is one for each prompt, over all its images together, since their tokens
compete in one row of attention; only that row is computed, so attention stays on SDPA. The layers
before K hold the full prompt in their caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import DecoderStage, Reducer
from mmtok.pruning.rank import top

if TYPE_CHECKING:
    from mmtok.models.taps import LayerAttention


@dataclass(frozen=True, kw_only=True)
class FastV(Reducer):
    """Drop the visual tokens the last token attends to least, once, inside the decoder.

    Attributes:
        layer: K, the first layer that runs without them.
    """

    keep: int | float = 0.5
    layer: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.layer, int) or isinstance(self.layer, bool) or self.layer < 1:
            raise InputError(f"fastv: layer must be an int >= 1, got {self.layer!r}")

    def in_decoder(self, layers: int) -> DecoderStage | None:
        """One stage; none if all is kept.

        Raises:
            InputError: the decoder has no such layer.
        """
        if self.layer >= layers:
            raise InputError(f"fastv: layer must be below {layers}, the decoder's depth")
        if self.keeps_all:
            return None
        return DecoderStage(layer=self.layer - 1, rule=self._attended)

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """All of them up to layer K, the kept ones from there on."""
        first = min(self.layer, layers)
        return [visual] * first + [self.keep_count(visual)] * (layers - first)

    def _attended(self, attention: LayerAttention, visual: Tensor) -> Tensor:
        keep = visual.clone()
        for item, row in enumerate(visual):
            places = row.nonzero().squeeze(1)
            k = self.keep_count(len(places))
            if 0 < k < len(places):
                score = attention.rows(item, last_token(attention, item))[0, places]
                keep[item, places] = False
                keep[item, places[top(score, k)]] = True
        return keep


def last_token(attention: LayerAttention, item: int) -> Tensor:
    """(1,) place of the last token of a prompt that is no padding: the last one a row may see."""
    if attention.mask is None:
        return torch.tensor([attention.key.shape[2] - 1], device=attention.key.device)
    row = attention.mask[item if len(attention.mask) > 1 else 0][0, -1]
    seen = row if row.dtype == torch.bool else row > -1e4
    return seen.nonzero()[-1]
