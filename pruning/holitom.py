"""HoliTom, holistic merging of a clip: still cells over windows, then space (arXiv 2505.21334).

Authors' repository: cokeshao/HoliTom; the rule follows the port in ModelTC/LightCompress. A clip is
divided into windows so that merging the cells that stay still all through a window saves the most
tokens, found by dynamic programming. Still cells become their means and are thinned by density
peaks; of each frame's other tokens the salient ones stay. Inside the decoder, in front of layer
18 of 28, half of what is left goes on: the tokens that the prompt's last token attends to most, and
each of the others is averaged into the most similar of these.

Deviations: the budget is exact, shared out over the windows' still cells and the frames' other
tokens by size; if still cells alone would go below the budget, only the most similar count as
still. Salience is the CLS attention and, without a CLS token, the cosine distance from the frame's
mean direction; the authors average the attention that a token receives in the tower. No noise in
the densities. Tokens stay in the order of the clip, a merged one where its centre stood in the
first frame of its window. A still, the views of an AnyRes image included, is one frame without
still cells. In the decoder, a token becomes the mean of all that joined it, weighted by how many
tokens each has been merged from there; the port averages them in one after the other, so that the
last weighs as much as all before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.cells import merge_group, still_and_moving
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage, Reads
from mmtok.pruning.dpc import density_flops
from mmtok.pruning.frames import Clip, read_clip
from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge, joined, merge_per_item
from mmtok.pruning.rank import apportion, top
from mmtok.pruning.salience import highest, salience
from mmtok.pruning.segments import most_still
from mmtok.pruning.slots import Slots, by_size, most_alike
from mmtok.pruning.work import Work
from mmtok.tokens import Query, Selection, VisualTokens

NEIGHBOURS, SHARE = 7, 0.6


@dataclass(frozen=True, kw_only=True)
class HoliTom(Reducer):
    """Merge still cells over time, keep what is salient of the rest.

    Attributes:
        threshold: cosine of a cell in consecutive frames above which it is still.
        later: share of the tokens kept that goes on inside the decoder, rounded half up and at
            least one; 1 all of them. With keep=1.0, all of them as well.
        context: share of a frame's tokens that are density peaks to which the frame's tokens that
            are not salient join, rounded half up; with 0 these are dropped.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    keep: int | float = 0.2
    threshold: float = 0.65
    context: float = 0.0
    later: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("threshold", -1, 1)
        self.check_number("context", 0, 1)
        self.check_number("later", 0, 1, above=True)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Divide into windows, merge over time, then choose in space."""
        work = Work()

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            x, clip = tokens.features[item, valid], read_clip(tokens, item, valid)
            x = x if x.dtype == torch.float64 else x.float()
            score = salience(tokens, item, valid, clip)
            step = steadiness(x, clip, work)
            windows = most_still(step > self.threshold)
            alike = [
                step[window.start : window.stop - 1].amin(0)
                if len(window) > 1
                else step.new_zeros(clip.table.shape[1])
                for window in windows
            ]
            still, moving = still_and_moving(clip, windows, alike, self.threshold, k)
            sizes = [len(rows) for rows in (*still, *moving)]
            quotas = apportion(sizes, sizes, k)
            slots = Slots()
            for rows, quota in zip(still, quotas, strict=False):
                self._merge(slots, x, rows, quota, work)
            for rows, quota in zip(moving, quotas[len(still) :], strict=True):
                merged = math.floor(quota * self.context + 0.5)
                first = highest(score, rows[:, 0], quota - merged)
                slots.alone(first)
                rest = rows[~torch.isin(rows[:, 0], first)]
                self._merge(slots, x, rest, merged, work)
            return slots.merge()

        return replace(merge_per_item(tokens, self.keep_count, choose), flops=work.flops)

    @staticmethod
    def _merge(slots: Slots, x: Tensor, rows: Tensor, k: int, work: Work) -> None:
        merge_group(slots, x, rows, k, share=SHARE, neighbours=NEIGHBOURS, work=work)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """At most what one group of all tokens costs, and one product of two vectors per token."""
        k = self.keep_count(n)
        return 2 * n * width + density_flops(n, width) if k < n else 0

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """One stage in front of layer floor(18L/28); none if all go on, or that is the first."""
        layer = 18 * layers // 28
        if self.keeps_all or self.later == 1 or layer < 1:
            return []
        reads = frozenset[Reads]({"attention"})
        return [DecoderStage(layer=layer, rule=self._attended, reads=reads)]

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """All of them up to the stage, the kept ones from there on."""
        first = next((stage.layer for stage in self.in_decoder(layers)), layers)
        return [visual] * first + [self._later_count(visual)] * (layers - first)

    def _later_count(self, n: int) -> int:
        return max(math.floor(self.later * n + 0.5), 1) if n else 0

    def _attended(self, prompt: DecoderPrompt) -> Selection:
        n = len(prompt.visual)
        kept = top(prompt.rows(prompt.last)[0, prompt.visual], self._later_count(n)).sort().values
        target = torch.full_like(prompt.visual, -1)
        target[kept] = kept
        lost = (target < 0).nonzero().squeeze(1)
        work = Work()
        target[lost] = kept[most_alike(prompt.hidden[prompt.visual], lost, kept, work)]
        prompt.flops += work.flops
        index, merge = by_size(joined(target), prompt.size)
        return Selection(indices=[index], merge=[merge])


def steadiness(x: Tensor, clip: Clip, work: Work) -> Tensor:
    """(T - 1, C) cosine of each cell in a frame and the next; -inf where a token is missing.

    Args:
        x: (N, D) features.
        clip: the tokens.
        work: told of the products.
    """
    before, after = clip.table[:-1], clip.table[1:]
    there = (before >= 0) & (after >= 0)
    x = unit(x)
    alike = torch.full(before.shape, -torch.inf, dtype=x.dtype, device=x.device)
    alike[there] = work.pairs(x[after[there]], x[before[there]])
    return alike
