"""Knorm: entries whose keys are long get little attention, the short ones stay (arXiv 2406.11430).

The score of an entry is minus the L2 norm of its key after rotation (a rotation does not change
it). Nothing else is read, so the choice costs next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtok.pruning.cache import CacheReducer, Entries


@dataclass(frozen=True, kw_only=True)
class Knorm(CacheReducer):
    """Keep the KV entries with the shortest keys."""

    keep: int | float = 0.5

    def score(self, entries: Entries, k: int, fixed: Tensor) -> Tensor:
        """Minus the norm of each key."""
        length: Tensor = torch.linalg.vector_norm(entries.keys.float(), dim=-1)
        return -length
