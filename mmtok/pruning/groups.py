"""Merging tokens of a batch of sequences: who joins whom, and what the groups become.

A label in [0, n) says which group a token belongs to. Groups stand in the order of their first
members, so raster order survives any number of merges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.greedy import unit


class Groups:
    """Groups of the n tokens of C sequences, in the order of their first members.

    Args:
        label: (C, n) int64 in [0, n).
        size: (C, n) patches in each token; tokens of size 0 are padding and form no group.

    Attributes:
        slot: (C, n) int64 group of each token; 0 for padding.
        first: (C, m) int64 first member of each group; 0 beyond the groups of a sequence.
        size: (C, m) patches in each group; 0 beyond.
    """

    def __init__(self, label: Tensor, size: Tensor) -> None:
        place = torch.arange(label.shape[1], device=label.device).expand_as(label)
        real = size > 0
        lowest = place.new_full(label.shape, label.shape[1])
        lowest.scatter_reduce_(1, label, place.masked_fill(~real, label.shape[1]), "amin")
        leads = real & (lowest.gather(1, label) == place)
        rank = leads.cumsum(1) - 1
        leader = lowest.gather(1, label).clamp_max(label.shape[1] - 1)
        self.slot = rank.gather(1, leader).masked_fill(~real, 0)
        count = int(leads.sum(1).max())
        row, column = leads.nonzero(as_tuple=True)
        self.first = place.new_zeros(len(label), count)
        self.first[row, rank[row, column]] = column
        self.size = size.new_zeros(len(label), count).scatter_add_(1, self.slot, size)
        self._share = size / self.size.gather(1, self.slot).clamp_min(1)

    def mean(self, x: Tensor) -> Tensor:
        """(C, m, D) mean of (C, n, D) over each group, weighted by size; groups of one unchanged.

        In fp32 at least, returned in the type of `x`.
        """
        wide = x if x.dtype == torch.float64 else x.float()
        out = wide.new_zeros(len(x), self.first.shape[1], x.shape[-1])
        index = self.slot[..., None].expand(x.shape)
        return out.scatter_add_(1, index, wide * self._share[..., None].to(wide.dtype)).to(x.dtype)

    def all(self, flag: Tensor) -> Tensor:
        """(C, m) bool: whether a flag (C, n) holds for each group's first member."""
        return flag.gather(1, self.first) & (self.size > 0)


def bipartite(
    metric: Tensor, free: Tensor, r: Tensor, *, every: int = 2, offset: int = 0
) -> tuple[Tensor, int]:
    """One round of matching: the r tokens most like their best partner join it.

    Of the free tokens every `every`-th is a destination; all others look for the destination of
    the largest cosine similarity. Ties go to the lower index.

    Args:
        metric: (C, n, d).
        free: (C, n) bool, tokens that may join or be joined.
        r: (C,) int64 how many join; fewer if there are no more.
        every: 2 for the alternating halves of ToMe.
        offset: tokens that stand before the free ones and count in the alternation.

    Returns:
        (C, n) labels and the FLOPs spent.
    """
    count = int(free.sum(1).max())
    index = (~free).int().argsort(dim=1, stable=True)[:, :count]  # the free ones, in order
    last = (torch.arange(count, device=free.device) + offset) % every == every - 1
    direction = unit(metric.gather(1, index[..., None].expand(-1, -1, metric.shape[-1])))
    source, target = index[:, ~last], index[:, last]
    label = torch.arange(free.shape[1], device=free.device).expand(free.shape).clone()
    if not source.shape[1] or not target.shape[1]:
        return label, 0
    score = direction[:, ~last] @ direction[:, last].transpose(1, 2)
    both = free.gather(1, source)[:, :, None] & free.gather(1, target)[:, None]
    best, partner = score.masked_fill(~both, -torch.inf).max(-1)
    order = best.sort(dim=1, descending=True, stable=True).indices
    place = torch.arange(source.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    joins = (rank < r[:, None]) & best.isfinite()
    label.scatter_(1, source, torch.where(joins, target.gather(1, partner), source))
    return label, 2 * score.numel() * metric.shape[-1]


def merge_down(
    metric: Tensor, size: Tensor, free: Tensor, r: Tensor, *, every: int = 2, offset: int = 0
) -> tuple[Tensor, int]:
    """Rounds of matching until exactly r tokens of each sequence have joined others.

    A round takes in the sources only, half of the tokens; the next one works on what it left.

    Args:
        metric: (C, n, d).
        size: (C, n) patches in each token; 0 at padding.
        free: (C, n) bool, tokens that may merge.
        r: (C,) int64, below the number of free tokens.
        every: as in `bipartite`.
        offset: as in `bipartite`.

    Returns:
        (C, n) labels and the FLOPs spent.

    Raises:
        InputError: no more tokens can join: `r` is too large, or `metric` not finite.
    """
    label = torch.arange(metric.shape[1], device=metric.device).expand(free.shape)
    left, total, rounds = r, 0, 0
    while bool((left > 0).any()):
        step, flops = bipartite(metric, free, left, every=every, offset=offset)
        groups = Groups(step, size)
        joined = (size > 0).sum(1) - (groups.size > 0).sum(1)
        if not bool(joined.any()):
            if every == 2:
                raise InputError(
                    "no tokens are left that can merge: too few, or NaN or infinite values"
                )
            every = 2  # fewer tokens than destinations are apart
        label = groups.slot.gather(1, label) if rounds else groups.slot
        metric, free, size = groups.mean(metric), groups.all(free), groups.size
        left, total, rounds = left - joined, total + flops, rounds + 1
    return label, total
