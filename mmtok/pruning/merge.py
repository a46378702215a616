"""Merging by slot: which tokens go into which output token, and with what weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.greedy import unit
from mmtok.pruning.work import Work
from mmtok.tokens import Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What becomes of the N tokens of one item.

    Attributes:
        kept: (k,) int64 places that the output tokens take, ascending and unique.
        source: (M,) int64 places.
        slot: (M,) int64, which output token each source goes into.
        weight: (M,) its share there.
    """

    kept: Tensor
    source: Tensor
    slot: Tensor
    weight: Tensor


class Slots:
    """Collects output tokens in any order; `merge` puts them into the order of their places."""

    def __init__(self) -> None:
        self._places: list[Tensor] = []
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count = 0

    def add(self, places: Tensor, source: Tensor, slot: Tensor, weight: Tensor) -> None:
        """Output tokens at (q,) `places`, and what goes into them; `slot` (M,) is in 0..q-1."""
        self._places.append(places)
        self._parts.append((source, slot + self._count, weight))
        self._count += len(places)

    def alone(self, places: Tensor) -> None:
        """Output tokens that stay as they are."""
        every = torch.arange(len(places), device=places.device)
        self.add(places, places, every, torch.ones_like(places, dtype=torch.float32))

    def merge(self) -> Merge:
        """All that was added."""
        kept, order = torch.cat(self._places).sort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        source, slot, weight = (torch.cat(part) for part in zip(*self._parts, strict=True))
        return Merge(kept=kept, source=source, slot=rank[slot], weight=weight)


def blend(label: Tensor, centre: Tensor, share: float) -> Tensor:
    """(M,) weights that make each output token of its centre and the mean of those that joined.

    Args:
        label: (M,) int64 which centre each token belongs to.
        centre: (k,) places of the centres among the M.
        share: weight of the centre; at least that of a plain mean, which 0 gives.
    """
    size = torch.bincount(label, minlength=len(centre)).float()
    own = (1 / size).clamp_min(share).masked_fill(size == 1, 1)
    weight = ((1 - own) / (size - 1).clamp_min(1))[label]
    weight[centre] = own
    return weight


def most_alike(x: Tensor, source: Tensor, target: Tensor, work: Work) -> Tensor:
    """(M,) which of the targets each source is most similar to in cosine, ties to the lower.

    Args:
        x: (N, D) features.
        source: (M,) places.
        target: (k,) places.
        work: told of the product.
    """
    return work.product(unit(x[source]), unit(x[target]).T).argmax(1)


def untouched(n: int, device: torch.device) -> Merge:
    """Each of n tokens stays as it is."""
    every = torch.arange(n, device=device)
    return Merge(kept=every, source=every, slot=every, weight=torch.ones(n, device=device))


def mean_into(target: Tensor, size: Tensor | None = None) -> Merge:
    """Every output token is the mean of all that go into it.

    Args:
        target: (N,) int64 place that each token goes into: its own, that of a token which stays
            in its own place, or -1 to be dropped.
        size: (N,) how many tokens each one counts for; default 1.
    """
    every = torch.arange(len(target), device=target.device)
    kept = (target == every).nonzero().squeeze(1)
    source = (target >= 0).nonzero().squeeze(1)
    slot = torch.searchsorted(kept, target[source])
    part = torch.ones_like(slot, dtype=torch.float32) if size is None else size[source]
    total = part.new_zeros(len(kept)).index_add_(0, slot, part)
    return Merge(kept=kept, source=source, slot=slot, weight=part / total[slot])


def per_item_merged(
    tokens: VisualTokens,
    keep_count: Callable[[int], int],
    choose: Callable[[int, Tensor, int, Work], Merge],
) -> Selection:
    """Merge item by item, so that no batch-mate or padding can change another item's tokens.

    Args:
        tokens: the candidates.
        keep_count: number of valid tokens -> number to keep.
        choose: (item, valid (n,) int64, k, work) -> what becomes of the valid tokens; called only
            when something must go. Its matrix products go through `work`.
    """
    indices, merges, work = [], [], Work()
    for item, row in enumerate(tokens.mask):
        valid = row.nonzero().squeeze(1)
        k = keep_count(len(valid))
        made = (
            choose(item, valid, k, work) if k < len(valid) else untouched(len(valid), valid.device)
        )
        indices.append(valid[made.kept])
        merges.append((valid[made.source], made.slot, made.weight))
    return Selection(indices=indices, merge=merges, flops=work.flops)
