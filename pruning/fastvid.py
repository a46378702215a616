"""FastVID: segments, salient tokens, and context gathered on anchor frames (arXiv 2503.11187).

The rule follows the port in ModelTC/LightCompress. A clip is cut where consecutive frames differ
most. Of each frame's share of the budget, the larger part goes to salient tokens, which stay as
they are; the rest of a segment's budget goes to its anchor frames, every fourth counted from the
end. There, density peaks of what is not salient become context tokens: every other token of the
segment that is not salient joins the most similar one of each anchor frame.

Deviations: the budget is exact, by largest remainder; what an anchor frame has no room for goes to
salient tokens of the segment's other frames. Salience is the CLS attention and, without a CLS
token, the cosine distance from the frame's mean direction. A clip shorter than the number of
segments is cut between all frames (the port fails). No noise in the densities. The method acts on
what enters the language model, not on its layers' inputs. A still, the views of an AnyRes image
included, is one frame and its own anchor. Context tokens are blends: a token may count on several
anchor frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.dpc import density_flops, density_peaks
from mmtok.pruning.frames import read_clip
from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge, merge_per_item
from mmtok.pruning.rank import apportion
from mmtok.pruning.salience import highest, salience
from mmtok.pruning.segments import at_cuts
from mmtok.pruning.slots import Slots, blend, most_alike
from mmtok.pruning.work import Work
from mmtok.tokens import Query, Selection, VisualTokens

NEIGHBOURS = 4


@dataclass(frozen=True, kw_only=True)
class FastVID(Reducer):
    """Keep salient tokens and blend the others into context tokens of anchor frames.

    Attributes:
        segments: at least so many; more where frames differ.
        threshold: consecutive frames less alike than this, in cosine of their means, are cut.
        context: share of the budget for context tokens, rounded down in each frame.
        every: one anchor frame in so many.
        share: weight of a context token's own feature; the rest is the mean of those that joined.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    keep: int | float = 0.1
    segments: int = 8
    threshold: float = 0.9
    context: float = 0.4
    every: int = 4
    share: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("segments", 1)
        self.check_number("every", 1)
        self.check_number("threshold", -1, 1)
        self.check_number("context", 0, 1)
        self.check_number("share", 0, 1)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Segment the clip, then choose and blend in each segment."""
        work = Work()

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            x, clip = tokens.features[item, valid], read_clip(tokens, item, valid)
            score = salience(tokens, item, valid, clip)
            means = unit(clip.means(x))
            alike = work.pairs(means[1:], means[:-1])
            sizes = [len(frame) for frame in clip.frames]
            quotas = apportion(sizes, sizes, k)
            slots = Slots()
            for segment in at_cuts(alike, self.segments, self.threshold):
                frames = clip.frames[segment.start : segment.stop]
                part = quotas[segment.start : segment.stop]
                self._segment(slots, x, score, frames, part, work)
            return slots.merge()

        return replace(merge_per_item(tokens, self.keep_count, choose), flops=work.flops)

    def split(self, sizes: list[int], quotas: list[int]) -> tuple[list[int], list[int]]:
        """How many salient and how many context tokens each frame of a segment gets.

        Args:
            sizes: tokens of each frame.
            quotas: budget of each frame.
        """
        salient = [quota - int(quota * self.context) for quota in quotas]
        total = sum(quotas) - sum(salient)
        is_anchor = [(len(sizes) - 1 - t) % self.every == 0 for t in range(len(sizes))]
        room = [size - taken for size, taken in zip(sizes, salient, strict=True)]
        caps = [r if anchor else 0 for r, anchor in zip(room, is_anchor, strict=True)]
        equal = [1.0] * len(sizes)
        context = apportion(equal, caps, min(total, sum(caps)))
        others = [0 if anchor else r for r, anchor in zip(room, is_anchor, strict=True)]
        extra = apportion(equal, others, total - sum(context))
        return [a + b for a, b in zip(salient, extra, strict=True)], context

    def _segment(
        self,
        slots: Slots,
        x: Tensor,
        score: Tensor,
        frames: list[Tensor],
        quotas: list[int],
        work: Work,
    ) -> None:
        salient, context = self.split([len(frame) for frame in frames], quotas)
        free = torch.zeros_like(score, dtype=torch.bool)
        free[torch.cat(frames)] = True
        for frame, count in zip(frames, salient, strict=True):
            chosen = highest(score, frame, count)
            free[chosen] = False
            slots.alone(chosen)
        rest = free.nonzero().squeeze(1)
        for frame, count in zip(frames, context, strict=True):
            if count:
                candidates = frame[free[frame]]
                peaks, _ = density_peaks(x[candidates], count, NEIGHBOURS, work)
                centre = candidates[peaks]
                label = most_alike(x, rest, centre, work)
                place = torch.searchsorted(rest, centre)
                label[place] = torch.arange(count, device=label.device)
                slots.add(centre, rest, label, blend(label, place, self.share))

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """At most what one frame of all tokens costs, all of them context."""
        k = self.keep_count(n)
        return 2 * n * width + density_flops(n, width) + 2 * n * k * width if k < n else 0
