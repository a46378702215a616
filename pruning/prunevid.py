"""PruneVid, the part before the language model: still and moving cells, merged (arXiv 2412.16117).

The rule follows the port in ModelTC/LightCompress. Frames are clustered by density peaks of their
means into a quarter as many clusters, which are made into segments. A cell whose tokens resemble
each other all through a segment is still: they become their mean. Still cells of a segment, and
moving ones of each frame, are clustered by density peaks and become the means of the clusters.

Deviations: the budget is exact and shared out over these groups by size, where the port halves each
group of more than 14; if still cells alone would go below the budget, only the most similar count
as still. A segment of one frame has no still cells (the port divides 0 by 0), so of a still picture
all tokens are clustered. No noise in the densities. Every output is the plain mean of all tokens
behind it; a group too small for a share joins the most similar tokens kept, so that all tokens
count. Tokens stay in the order of the clip, each where its cluster's centre stood (first) instead
of still ones first. The method's stage inside the decoder is not here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.cells import merge_group, still_and_moving
from mmtok.pruning.dpc import density_flops, density_peaks
from mmtok.pruning.frames import Clip, read_clip
from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge, joined, merge_per_item
from mmtok.pruning.rank import apportion
from mmtok.pruning.segments import of_clusters
from mmtok.pruning.slots import Slots, most_alike
from mmtok.pruning.work import Work
from mmtok.tokens import Query, Selection, VisualTokens

NEIGHBOURS = 7


@dataclass(frozen=True, kw_only=True)
class PruneVid(Reducer):
    """Merge still cells over time, then similar tokens in space.

    Attributes:
        segments: clusters of frames, as a share of the frames, rounded down; at least one.
        threshold: mean cosine above which a cell is still.
    """

    keep: int | float = 0.25
    segments: float = 0.25
    threshold: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("segments", 0, 1, above=True)
        self.check_number("threshold", -1, 1)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Segment, merge over time, merge in space."""
        work = Work()

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            x, clip = tokens.features[item, valid], read_clip(tokens, item, valid)
            x = x if x.dtype == torch.float64 else x.float()
            segments = self._segments(clip.means(x), work)
            alike = [stillness(x, clip, segment) for segment in segments]
            still, moving = still_and_moving(clip, segments, alike, self.threshold, k)
            groups = [*still, *moving]
            sizes = [len(rows) for rows in groups]
            slots = Slots()
            for rows, quota in zip(groups, apportion(sizes, sizes, k), strict=True):
                merge_group(slots, x, rows, quota, share=0, neighbours=NEIGHBOURS, work=work)
            return with_all(slots.merge(), x, work)

        return replace(merge_per_item(tokens, self.keep_count, choose), flops=work.flops)

    def _segments(self, means: Tensor, work: Work) -> list[range]:
        count = max(int(self.segments * len(means)), 1)
        return of_clusters(density_peaks(means, count, NEIGHBOURS, work)[1].tolist())

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """At most what one group of all tokens costs, frames, clusters and leftovers included."""
        k = self.keep_count(n)
        return 2 * density_flops(n, width) + 2 * n * k * width if k < n else 0


def stillness(x: Tensor, clip: Clip, segment: range) -> Tensor:
    """(C,) mean cosine between the tokens of each cell in different frames of a segment.

    Args:
        x: (N, D) features.
        clip: the tokens.
        segment: frames. Where a cell lacks a token, that counts as a zero vector.
    """
    places = clip.table[segment.start : segment.stop]
    seen = unit(x)[places.clamp_min(0)].masked_fill((places < 0)[..., None], 0)
    pairs = seen.sum(0).square().sum(1) - seen.square().sum((0, 2))
    return pairs / max(len(segment) * (len(segment) - 1), 1)


def with_all(merge: Merge, x: Tensor, work: Work) -> Merge:
    """The merge with every token in it that was in no slot: means, over the most alike added."""
    kept, (source, slot, _) = merge
    target = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
    target[source] = kept[slot]
    lost = (target < 0).nonzero().squeeze(1)
    target[lost] = kept[most_alike(x, lost, kept, work)]
    return joined(target)
