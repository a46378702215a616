"""Merging: which tokens go into which slot, and with what weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmtok.tokens import Selection, VisualTokens

# Kept places (k,), ascending, and the triple (source, slot, weight), each (M,); see `Selection`.
Merge = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]


def merge_per_item(
    tokens: VisualTokens,
    keep_count: Callable[[int], int],
    choose: Callable[[int, Tensor, int], Merge],
) -> Selection:
    """Merge item by item, so that no batch-mate or padding can change another item's result.

    Args:
        tokens: the candidates.
        keep_count: number of valid tokens -> the most to keep.
        choose: (item, valid (n,) int64, k) -> the merge in places among the valid ones; called only
            when something must go.
    """
    indices, merges = [], []
    for item, row in enumerate(tokens.mask):
        valid = row.nonzero().squeeze(1)
        k = keep_count(len(valid))
        merge = (
            choose(item, valid, k)
            if k < len(valid)
            else slots_of_their_own(torch.arange(len(valid), device=valid.device))
        )
        kept, (source, slot, weight) = merge
        indices.append(valid[kept])
        merges.append((valid[source], slot, weight))
    return Selection(indices=indices, merge=merges)


def slots_of_their_own(place: Tensor) -> Merge:
    """The tokens at ascending places (k,) as they are; all others are dropped."""
    slot = torch.arange(len(place), device=place.device)
    return place, (place, slot, torch.ones(len(place), device=place.device))


def joined(target: Tensor) -> Merge:
    """Slots that hold the mean of a token and of those that join it.

    Args:
        target: (N,) place of the token each token goes into: itself, another, or -1 for none.
    """
    kept = (target == torch.arange(len(target), device=target.device)).nonzero().squeeze(1)
    source = (target >= 0).nonzero().squeeze(1)
    slot = torch.searchsorted(kept, target[source])
    return kept, (source, slot, (1 / torch.bincount(slot).float())[slot])
