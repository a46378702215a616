"""A2SF: attention received, where old queries are forgotten bit by bit (arXiv 2407.20485).

Authors' repository: Dirac-Notation/A2SF. The score of an entry is the sum, over all queries of the
prompt and the query heads that share a KV head, of the attention it got, each query weighted by
`factor` to the power of its distance from the end. The `recent` last entries always stay.

Deviations: padding has no say, and distances count real tokens. Rows are added from the end in
blocks, and as soon as what older rows could still add cannot change the choice they are left out:
the choice is that of all rows, the cost is not. The authors' code evicts once, after the prefill,
and so do we. A budget below `recent` fails there; here a number is refused, and a share keeps the
latest entries only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.pruning.cache import CacheReducer, Entries

BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class A2SF(CacheReducer):
    """Keep recent KV entries and those that got the most attention lately.

    Attributes:
        factor: what a query's vote is multiplied by for every token that follows it; 1 forgets
            nothing, which is H2O's score.
        recent: entries at the end that always stay.
    """

    reads_queries: ClassVar[bool] = True

    keep: int | float = 256
    factor: float = 0.95
    recent: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("factor", 0, 1, above=True)
        self.check_protected(recent=self.recent)

    def protected(self) -> tuple[int, int]:
        """The recent entries."""
        return 0, self.recent

    def score(self, entries: Entries, k: int, fixed: Tensor) -> Tensor:
        """Forgetting-weighted attention received, from as many rows as the choice depends on."""
        n, groups = len(entries), len(entries.keys)
        total = entries.keys.new_zeros(groups, n, dtype=torch.float32)
        for end in range(n, 0, -BLOCK):
            query = torch.arange(max(end - BLOCK, 0), end, device=fixed.device)
            rows = entries.rows(query)
            weight = self.factor ** (n - 1 - query).float()
            total += entries.by_head((rows * weight[:, None]).sum(1)).sum(1)
            left = self.mass(n, n - max(end - BLOCK, 0)) * len(rows) / groups
            if settled(total, k, fixed, left):
                break
        return total

    def mass(self, n: int, seen: int) -> float:
        """The most that the queries beyond the last `seen` of n can add to one entry per head."""
        if self.factor == 1:
            return float(n - seen)
        return float((self.factor**seen - self.factor**n) / (1 - self.factor))


def settled(score: Tensor, k: int, fixed: Tensor, left: float) -> bool:
    """Whether adding at most `left` to any of (G, n) scores cannot change the best k of them."""
    free = score[:, ~fixed].sort(dim=-1, descending=True).values
    if not 0 < k < free.shape[1]:
        return True
    return bool((free[:, k - 1] - free[:, k] > left).all())
