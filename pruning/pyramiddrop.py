"""PyramidDrop: visual tokens leave in steps, deeper layers read fewer (arXiv 2410.17247).

Formulas after the PyTorch port in ModelTC/LightCompress. In front of the layers at 1/4, 1/2 and 3/4
of the depth, the last token of the prompt asks with the queries and keys of the layer in front,
mean over heads; the tokens it attends to most go on. `keep` is what the last stage leaves. The
stages before shrink by the same factor each, so the published ratios 1/2, 1/4, 1/8 are keep=0.125;
layers read keep**(s/3) of all tokens behind stage s, on average 47% with that setting.

Deviations: survivors keep their positions, where the authors number them anew; counts are
rounded half up, where they are cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import (
    DecoderPrompt,
    DecoderStage,
    keeping,
    stage_layers,
    staged,
    stepped,
    tapered,
)
from mmtok.pruning.rank import top
from mmtok.tokens import Selection


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Reducer):
    """Drop what the last token attends to least, a share in front of each of several layers.

    Attributes:
        keep: visual tokens of a prompt left after the last stage.
        layers: first layers that run on fewer tokens, ascending. Default: at 1/4, 1/2 and 3/4.
    """

    keep: int | float = 0.125
    layers: tuple[int, ...] | None = None

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """One stage per layer; none if all is kept.

        Raises:
            InputError: the decoder has no such layers.
        """
        places = self._places(layers)
        return [] if self.keeps_all else staged(places, self._asked, "own_attention")

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """Fewer from each stage on."""
        places = self._places(layers)
        counts = tapered(visual, self.keep_count(visual), len(places))
        return stepped(layers, places, counts, visual)

    def _places(self, layers: int) -> list[int]:
        return stage_layers(self.name, self.layers, (1 / 4, 1 / 2, 3 / 4), layers)

    def _asked(self, stage: int, stages: int, prompt: DecoderPrompt) -> Selection:
        now = len(prompt.visual)
        first = prompt.memory.setdefault(self.name, now)
        k = tapered(first, self.keep_count(first), stages)[stage]
        if k >= now:
            return keeping(torch.arange(now, device=prompt.visual.device))
        return keeping(top(prompt.rows(prompt.last)[0, prompt.visual], k))
