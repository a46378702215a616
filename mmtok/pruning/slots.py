"""Output tokens put together bit by bit, and the weights of what goes into them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge
from mmtok.pruning.work import Work


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
        return kept, (source, rank[slot], weight)


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


def by_size(merge: Merge, size: Tensor) -> Merge:
    """The same slots as means weighted by the (N,) size of each token."""
    kept, (source, slot, _) = merge
    part = size[source].float()
    total = part.new_zeros(len(kept)).index_add_(0, slot, part)
    return kept, (source, slot, part / total[slot])
