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
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item, seeded
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage, Reads, keeping
from mmtok.pruning.greedy import greedy_diverse, greedy_flops
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class ToDRE(Reducer):
    """Keep far-apart tokens, and drop them all once the text has read them.

    Attributes:
        rule: "kcenter" (v1) or "maxsum" (v2) for stage 1.
        tau: stage 2 drops the visual tokens when both attention shares fall below it; 0 never,
            nor with keep=1.0.
        seed: for the start token of encoders without CLS.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    keep: int | float = 0.25
    rule: Literal["kcenter", "maxsum"] = "kcenter"
    tau: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("tau", 0, 1)

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
        if tokens.overview is not None and tokens.overview[item].any():
            attention = attention.masked_fill(~tokens.overview[item, valid], -1)
        return int(attention.argmax())

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """Stage 1: see `greedy_flops`."""
        k = self.keep_count(n)
        return greedy_flops(n, k, width) if k < n else 0

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """Stage 2 behind layer floor(7L/8); none if tau is 0, all is kept, or none would save."""
        layer = 7 * layers // 8
        if self.keeps_all or self.tau == 0 or layer >= layers - 1:
            return []
        reads = frozenset[Reads]({"attention"})
        return [DecoderStage(layer=layer + 1, rule=self._relevant, reads=reads)]

    def _relevant(self, prompt: DecoderPrompt) -> Selection:
        relevant = max(task_relevance(prompt)) >= self.tau
        count = len(prompt.visual) if relevant else 0
        return keeping(torch.arange(count, device=prompt.visual.device))


def task_relevance(prompt: DecoderPrompt) -> tuple[float, float]:
    """Share of the text's attention that goes to vision, and of vision's that goes to the text.

    Text is what follows the last visual token. Where the image cannot see the text that follows
    it, as under a causal mask, the second share is exactly 0 and costs nothing.
    """
    attention, text, visual = prompt.attention, prompt.asking, prompt.visual
    if attention is None or len(text) == 0:
        return 1.0, 1.0  # nothing has asked yet: keep everything
    from_text = prompt.rows(text)[:, visual].sum() / len(text)
    if not attention.sees(prompt.item, visual, text):
        return float(from_text), 0.0
    return float(from_text), float(prompt.rows(visual)[:, text].sum() / len(visual))
