"""ToDRE: token diversity, then task relevance (arXiv 2505.18757). The authors released no code.

Stage 1, after the encoder: start at the patch that the CLS token attends to most and keep adding
the token farthest from those kept. v1 of the paper uses k-center, v2 the maximal summed distance;
on clustered features the latter leaves clusters empty, so k-center is our default.
Stage 2, in the decoder at layer floor(7L/8): when the instruction hardly looks at the image any
more, all visual tokens leave.

Where the paper is silent: distance is cosine distance; without a CLS token the start is random and
seeded; positions of the survivors are the original ones; "text" is every token after the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import DecoderStage, LayerAttention, Reducer, per_item, seeded
from mmtok.pruning.greedy import greedy_diverse
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class ToDRE(Reducer):
    """Keep far-apart tokens, and drop them all once the text has read them.

    Attributes:
        rule: "kcenter" (v1) or "maxsum" (v2) for stage 1.
        tau: stage 2 drops the visual tokens when both attention shares fall below it; 0 never.
        seed: for the start token of encoders without CLS.
    """

    keep: int | float = 0.25
    rule: Literal["kcenter", "maxsum"] = "kcenter"
    tau: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in ("kcenter", "maxsum"):
            raise InputError(f"todre: rule must be 'kcenter' or 'maxsum', got {self.rule!r}")
        if not isinstance(self.tau, int | float) or not 0 <= self.tau <= 1:
            raise InputError(f"todre: tau must be a number in [0, 1], got {self.tau!r}")

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Stage 1: greedy choice from the pivot on."""

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            x = tokens.features[item, valid]
            return greedy_diverse(x, k, self._pivot(tokens, item, valid), self.rule)

        return per_item(tokens, self.keep_count, choose)

    def _pivot(self, tokens: VisualTokens, item: int, valid: Tensor) -> int:
        if tokens.cls_attention is None:
            generator = seeded(self.seed, tokens.item_ids[item])
            return int(torch.randint(len(valid), (), generator=generator))
        attention = tokens.cls_attention[item, valid]
        return int(attention.argmax())

    def in_decoder(self, layers: int) -> DecoderStage | None:
        """Stage 2 at layer floor(7L/8), unless tau is 0 or no layer is left to save."""
        layer = 7 * layers // 8
        if self.tau == 0 or layer >= layers - 1:
            return None
        return DecoderStage(layer=layer, rule=self._relevant)

    def _relevant(self, attention: LayerAttention, visual: Tensor) -> Tensor:
        keep = visual.clone()
        for batch, row in enumerate(visual):
            share = max(task_relevance(attention, batch, row))
            keep[batch] &= share >= self.tau
        return keep


def task_relevance(attention: LayerAttention, batch: int, visual: Tensor) -> tuple[float, float]:
    """Share of attention that flows from text to vision, and from vision to text.

    Text is what follows the last visual token. The second share is exactly 0 under a causal mask;
    it is what the paper's rule asks for where the decoder attends both ways over the prompt.

    Args:
        attention: queries and keys of the layer.
        batch: which prompt.
        visual: (S,) bool, where its visual tokens are.
    """
    places = visual.nonzero().squeeze(1)
    if len(places) == 0:
        return 0.0, 0.0
    after = torch.arange(len(visual), device=visual.device) > places[-1]
    text = (after & attention.valid[batch]).nonzero().squeeze(1)
    if len(text) == 0:
        return 1.0, 1.0  # nothing has asked yet: keep everything
    from_text = attention.rows(batch, text)
    return float(from_text[:, places].sum() / from_text.sum()), 0.0
