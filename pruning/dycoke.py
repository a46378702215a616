"""DyCoke, temporal merging: later frames keep what changed (arXiv 2411.15024).

Authors' repository: KD-TAO/DyCoke; the rule follows the port in ModelTC/LightCompress. Frames come
in groups of four. The first of a group is whole; the third is compared with the first, the second
and fourth with the frame before. Compared cell by cell, the least similar tokens stay, the same
share of each frame. With `read` below 1, decode steps read that share of the visual KV entries,
those the newest token attends to in one layer; the others stay stored and may return.

Deviations: every group is treated alike, the last and an unfinished one too; the port leaves the
last group half done, drops an odd last frame and fails below five frames (`compat="repo"`, where
the odd frame gives tokens only if the budget exceeds all others). The budget is exact: with k below
the number of tokens of whole frames, those are thinned evenly (the rule of `stride`), and so is a
still. A cell without a counterpart counts as changed. With `merge`, what leaves is averaged into
the token it was compared with, or where that has left as well, into the one that stands for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.cache import CachePolicy
from mmtok.pruning.frames import Clip, read_clip
from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge, joined, merge_per_item
from mmtok.pruning.rank import apportion
from mmtok.pruning.recall import VisualRecall
from mmtok.pruning.salience import highest
from mmtok.pruning.slots import most_alike
from mmtok.pruning.work import Work
from mmtok.tokens import Query, Selection, VisualTokens

WHOLE, SPARE = -1, -2


@dataclass(frozen=True, kw_only=True)
class DyCoke(Reducer):
    """Keep one frame in four, and what differs from it or from the frame before.

    Attributes:
        merge: average the tokens that leave into those that stay, rather than dropping them.
        read: share of visual KV entries that decode steps read behind `layer`; published: 0.3.
        layer: the decoder layer whose attention chooses them.
        compat: "repo" for the groups as the port forms them.
    """

    keep: int | float = 0.475  # a quarter, and 30% of three quarters as published
    merge: bool = False
    read: float = 1.0
    layer: int = 3
    compat: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("read", 0, 1, above=True)
        self.check_number("layer")

    def in_cache(self, layers: int) -> CachePolicy | None:
        """Read a share of what is stored, chosen anew when the attention turns elsewhere.

        Raises:
            InputError: the decoder has no such layer.
        """
        if self.read == 1:
            return None
        if self.layer >= layers:
            raise InputError(f"dycoke: layer must be below {layers}, the decoder's depth")
        if self.keeps_all:
            return None
        return VisualRecall(lambda n: max(math.floor(self.read * n + 0.5), 1), layer=self.layer)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Keep, and with `merge` average, frame by frame."""
        work = Work()

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            return self._choose(tokens, item, valid, k, work)[0]

        def merge(item: int, valid: Tensor, k: int) -> Merge:
            kept, other = self._choose(tokens, item, valid, k, work)
            return joined(targets(tokens.features[item, valid], kept, other, work))

        chosen = (
            merge_per_item(tokens, self.keep_count, merge)
            if self.merge
            else per_item(tokens, self.keep_count, choose)
        )
        return replace(chosen, flops=work.flops)

    def _choose(
        self, tokens: VisualTokens, item: int, valid: Tensor, k: int, work: Work
    ) -> tuple[Tensor, Tensor]:
        """(k,) places that stay, and the (N,) place each token was compared with, or -1."""
        clip = read_clip(tokens, item, valid)
        against = compared_with(len(clip.table), self.compat)
        frame = torch.tensor(against, device=valid.device)[clip.frame]
        other = clip.table[frame.clamp_min(0), clip.cell].masked_fill(frame < 0, -1)
        x = unit(tokens.features[item, valid])
        alike = work.pairs(x, x[other.clamp_min(0)]).masked_fill(other < 0, -torch.inf)
        return keep_changed(clip, against, alike, k), other

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """One product of two vectors per token; merging may have to compare all that leave."""
        k = self.keep_count(n)
        lost = (n - k) * k if self.merge else 0
        return 2 * (n + lost) * width if k < n else 0


def compared_with(length: int, compat: Literal["paper", "repo"] = "paper") -> list[int]:
    """Which earlier frame each of `length` frames is compared with; WHOLE, or SPARE, for none."""
    against = [WHOLE if t % 4 == 0 else t - 2 if t % 4 == 2 else t - 1 for t in range(length)]
    if compat == "repo":
        for t in range(2, length, 4):
            if t - 2 >= length - 4:
                against[t] = WHOLE
        if length % 2 and length > 1:
            against[-1] = SPARE
    return against


def keep_changed(clip: Clip, against: list[int], alike: Tensor, k: int) -> Tensor:
    """(k,) places: whole frames, and of the compared ones the least similar tokens.

    Args:
        clip: the tokens.
        against: see `compared_with`.
        alike: (N,) similarity of each token to the one it is compared with.
        k: how many, less than there are.
    """
    by_kind = dict[bool | None, list[Tensor]]({None: [], False: [], True: []})
    for frame, other in zip(clip.frames, against, strict=True):
        by_kind[None if other == SPARE else other == WHOLE].append(frame)
    whole, compared, spare = by_kind[True], by_kind[False], by_kind[None]
    anchors = torch.cat(whole)
    if k <= len(anchors):
        return evenly(anchors, k)
    sizes = [len(frame) for frame in compared]
    left = k - len(anchors) - sum(sizes)
    quotas = apportion(sizes, sizes, min(k - len(anchors), sum(sizes)))
    kept = [highest(-alike, frame, q) for frame, q in zip(compared, quotas, strict=True)]
    return torch.cat([anchors, *kept, *(evenly(frame, max(left, 0)) for frame in spare)])


def targets(x: Tensor, kept: Tensor, other: Tensor, work: Work) -> Tensor:
    """(N,) token that stays into which each token goes.

    That is the one it was compared with, or if that leaves, the one that one goes into; else, as
    for whole frames above the budget, the most similar of all.

    Args:
        x: (N, D) features.
        kept: (k,) places that stay.
        other: (N,) place each token was compared with, or -1.
        work: told of the products.
    """
    kept = kept.sort().values
    every = torch.arange(len(x), device=x.device)
    stays = torch.isin(every, kept)
    target = torch.where(stays, every, other)
    for _ in range(2):  # the fourth frame of a group leads to the first in three steps
        target = torch.where(target < 0, target, target[target.clamp_min(0)])
    lost = ((target < 0) | ~stays[target.clamp_min(0)]).nonzero().squeeze(1)
    target[lost] = kept[most_alike(x, lost, kept, work)]
    return target


def evenly(places: Tensor, k: int) -> Tensor:
    """(k,) evenly spaced of the places."""
    step = torch.arange(k, device=places.device)
    return places[(2 * step + 1) * len(places) // max(2 * k, 1)]
