"""FrameFusion: merge what does not change between frames, then prune once (arXiv 2501.01986).

Authors' repository: thu-nics/FrameFusion. From the first decoder layers on, tokens at the same
place of consecutive frames merge where the cosine of their hidden states is at least 0.6. When a
layer merges fewer than a tenth, or all that had to go is gone, merging ends; what is still too much
is then pruned in front of the next layer by the attention all tokens pay to it, mean over heads.

The authors' budget is `cost`, the share of visual tokens that layers read on average. `keep` is
ours: what is left at last, exactly. Deviations: stages stand between layers, where theirs stand
behind the attention inside a layer; the number of layers is the decoder's, where 28 is written into
their code; what merges again counts by the number of tokens it is made of; images are apart, and a
picture alone is only pruned; survivors keep the position of the first of their run, as theirs do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage, Reads, keeping
from mmtok.pruning.rank import top
from mmtok.tokens import Selection


@dataclass
class _Progress:
    """Where one prompt stands: tokens that each layer so far read, and what comes next."""

    counts: list[int] = field(default_factory=list)
    doing: str = "merge"


@dataclass(frozen=True, kw_only=True)
class FrameFusion(Reducer):
    """Merge tokens that stay the same from frame to frame, then prune by attention once.

    Attributes:
        keep: visual tokens of a prompt left at last. Not read where `cost` is given.
        cost: share of the visual tokens that layers read on average, in (0, 1]; None: `keep` rules.
        similarity: least cosine of two tokens that merge.
        least: merging ends when a layer merges a smaller share than this.
    """

    keep: int | float = 0.3
    cost: float | None = None
    similarity: float = 0.6
    least: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("cost", 0, 1, above=True)
        self.check_number("similarity", -1, 1, above=True)
        self.check_number("least", 0, 1, above=True)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing leaves: with `cost`, something does."""
        return self.cost is None and super().keeps_all

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        """One stage in front of every layer but the first; none if all is kept.

        Raises:
            InputError: the cost cannot be met: two layers at least read all tokens.
        """
        if self.cost is not None and self.cost * layers <= 2:
            raise InputError(
                f"framefusion: cost={self.cost!r} cannot be met by {layers} layers, of which two "
                f"may read all tokens: it must be above {2 / layers:.3f}"
            )
        if self.keeps_all:
            return []
        reads = frozenset[Reads]({"attention"})
        return [
            DecoderStage(layer=layer, rule=partial(self._step, layers), reads=reads)
            for layer in range(1, layers)
        ]

    def decoder_schedule(self, layers: int, visual: int) -> list[int]:
        """With `keep`, the most each layer can read; with `cost`, an even spread of the budget."""
        if self.cost is not None:
            left = tokens_to_keep(visual, [visual] * min(2, layers - 1), visual, self.cost, layers)
            return ([visual] * 2 + [left] * layers)[:layers]
        k, merged = self.keep_count(visual), 1 - self.least
        most = [max(k, math.floor(visual * merged**step)) for step in range(layers - 2)]
        return [visual, *most, k][:layers]

    def _step(self, layers: int, prompt: DecoderPrompt) -> Selection:
        progress = prompt.memory.setdefault(self.name, _Progress())
        now = len(prompt.visual)
        progress.counts.append(now)
        if self.cost is None:
            k = min(self.keep_count(progress.counts[0]), now)
        else:
            k = tokens_to_keep(progress.counts[0], progress.counts, now, self.cost, layers)
        everything = keeping(torch.arange(now, device=prompt.visual.device))
        if progress.doing == "nothing" or k == now:
            return everything
        if progress.doing == "prune" or len(progress.counts) == layers - 1:
            progress.doing = "nothing"
            return keeping(top(prompt.received()[prompt.visual], k))
        order, likeness = frame_likeness(prompt.hidden[prompt.visual], prompt.cell)
        joins = likeness >= self.similarity
        count = int(joins.sum())
        if count >= now - k:
            count, progress.doing = now - k, "nothing"
        elif count < self.least * now:
            progress.doing = "prune"
        if count == 0:
            return everything
        joins = torch.zeros_like(joins).index_fill(0, top(likeness, count), True)
        return merge_runs(order, joins, prompt.size)


def tokens_to_keep(first: int, read: list[int], now: int, cost: float, layers: int) -> int:
    """How many of `now` tokens the layers still to come may read, at least 1.

    Args:
        first: tokens there were.
        read: tokens each layer so far has read.
        now: tokens at hand.
        cost: share of the tokens to read on average over all layers.
        layers: of the decoder, more than have read.
    """
    left = (cost * layers * first - sum(read)) / (layers - len(read))
    return min(max(math.floor(left + 0.5), 1), now)


def frame_likeness(x: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of each token with the one at the same place of the frame before.

    Args:
        x: (N, D) hidden states.
        cell: (N, 4) clip and (t, h, w).

    Returns:
        (N,) int64 order of the tokens by place, then time, and in that order (N,) their likeness to
        the token before them; -2 where a place begins.
    """
    order = torch.arange(len(x), device=x.device)
    for column in (1, 3, 2, 0):  # stable sorts, the most important last
        order = order[cell[order, column].argsort(stable=True)]
    x, place = x[order].float(), cell[order][:, [0, 2, 3]]
    likeness = torch.cosine_similarity(x[1:], x[:-1], dim=1)
    same = (place[1:] == place[:-1]).all(1)
    likeness = likeness.nan_to_num(0).masked_fill(~same, -2)
    return order, torch.cat([likeness.new_full((1,), -2), likeness])


def merge_runs(order: Tensor, joins: Tensor, size: Tensor) -> Selection:
    """Merge every token that joins into its predecessor's run, as the mean by size.

    Args:
        order: (N,) tokens by place, then time.
        joins: (N,) bool in that order; the first is False.
        size: (N,) tokens each one is made of.
    """
    run = (~joins).long().cumsum(0) - 1
    head = order[~joins]
    index = head.sort().values
    slot = torch.searchsorted(index, head)[run]
    total = torch.zeros(len(index), device=size.device).index_add_(0, slot, size[order])
    return Selection(indices=[index], merge=[(order, slot, size[order] / total[slot])])
