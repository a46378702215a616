"""FastV: behind the second decoder layer, half the visual tokens are enough (arXiv 2403.06764).

Authors' repository: pkunlp-icler/FastV. What the last token attends to least in layer K - 1, mean
over heads, does not enter layer K. As in the released code the last token alone asks; the paper's
text averages the rows of all tokens (`rows="all"`). Survivors keep their positions.

Deviations: the budget is one for each prompt, over all its images together, since their tokens
compete in one row of attention. Only the rows that ask are computed, so attention stays on SDPA.
The layers before K hold the full prompt in their caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage, Reads, keeping
from mmtok.pruning.rank import top
from mmtok.tokens import Selection


@dataclass(frozen=True, kw_only=True)
class FastV(Reducer):
    """Drop the visual tokens the last token attends to least, once, inside the decoder.

    Attributes:
        layer: K, the first layer that runs without them.
        rows: whose attention counts, that of the "last" token or the mean over "all" tokens.
    """

    keep: int | float = 0.5
    layer: int = 2
    rows: Literal["last", "all"] = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("layer", 1)

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """One stage; none if all is kept.

        Raises:
            InputError: the decoder has no such layer.
        """
        if self.layer >= layers:
            raise InputError(f"fastv: layer must be below {layers}, the decoder's depth")
        if self.keeps_all:
            return []
        reads = frozenset[Reads]({"attention"})
        return [DecoderStage(layer=self.layer, rule=self._attended, reads=reads)]

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """All of them up to layer K, the kept ones from there on."""
        first = min(self.layer, layers)
        return [visual] * first + [self.keep_count(visual)] * (layers - first)

    def _attended(self, prompt: DecoderPrompt) -> Selection:
        k = self.keep_count(len(prompt.visual))
        if k == len(prompt.visual):
            return keeping(torch.arange(k, device=prompt.visual.device))
        row = prompt.received() if self.rows == "all" else prompt.rows(prompt.last)[0]
        return keeping(top(row[prompt.visual], k))
