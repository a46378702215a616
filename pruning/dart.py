"""DART: keep what repeats least what a few pivots say already (arXiv 2502.11494).

Formulas after the port in ModelTC/LightCompress. In front of layer K, pivots are the visual tokens
and the words behind the image whose keys in layer K - 1 have the largest L1 norm. Each pivot in
turn takes the visual tokens least like it, by the cosine of hidden states after the final norm.

Deviations: the budget is exact and shared out evenly over the pivots, the first taking one more
where it does not divide; the port keeps (pivots) * floor(...) + (visual pivots). Pivots take turns
by falling norm, visual ones first; in the port the order of a hash set decides. The budget is one
for each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage, Reads, keeping, stepped
from mmtok.pruning.greedy import unit
from mmtok.pruning.rank import apportion, top
from mmtok.tokens import Selection


@dataclass(frozen=True, kw_only=True)
class DART(Reducer):
    """Keep pivots and the visual tokens that duplicate them least, once, inside the decoder.

    Attributes:
        keep: visual tokens of a prompt from layer K on.
        layer: K, the first layer that runs without the others.
        image_pivots: how many visual tokens are pivots; these are kept.
        text_pivots: how many words behind the image are.
    """

    keep: int | float = 0.25
    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("layer", 1)
        self.check_number("image_pivots", 1)
        self.check_number("text_pivots")

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """One stage; none if all is kept."""
        if self.keeps_all:
            return []
        reads = frozenset[Reads]({"attention"})
        return [DecoderStage(layer=self.layer, rule=self._unlike, reads=reads)]

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """All of them up to layer K, the kept ones from there on."""
        return stepped(layers, [self.layer], [self.keep_count(visual)], visual)

    def _unlike(self, prompt: DecoderPrompt) -> Selection:
        n = len(prompt.visual)
        k = self.keep_count(n)
        if k == n or prompt.attention is None:
            return keeping(torch.arange(n, device=prompt.visual.device))
        norm = prompt.attention.key[prompt.item].float().abs().sum((0, 2))
        image = top(norm[prompt.visual], min(self.image_pivots, k))
        text = prompt.asking[top(norm[prompt.asking], self.text_pivots)]
        pivots = torch.cat([prompt.visual[image], text])
        quota = apportion([1] * len(pivots), [n] * len(pivots), k - len(image))
        x = unit(prompt.norm(prompt.hidden))
        prompt.flops += 2 * len(pivots) * n * x.shape[1]
        taken = least_alike(x[pivots] @ x[prompt.visual].T, quota, image)
        return keeping(torch.cat([image, taken]))


def least_alike(likeness: Tensor, quota: Sequence[int], taken: Tensor) -> Tensor:
    """Each pivot in turn takes the tokens least like it, ties to the lower index.

    Args:
        likeness: (P, N) of pivots and tokens.
        quota: how many each pivot takes.
        taken: tokens nobody may take.
    """
    chosen = []
    free = torch.ones(likeness.shape[1], dtype=torch.bool, device=likeness.device)
    free[taken] = False
    for row, count in zip(likeness, quota, strict=True):
        chosen.append(top((-row).masked_fill(~free, -torch.inf), count))
        free[chosen[-1]] = False
    return torch.cat(chosen)
