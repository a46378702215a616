"""SnapKV: the end of the prompt shows which KV entries the answer will read (arXiv 2404.14469).

The last `window` tokens vote: mean of their attention rows, smoothed along the sequence, mean over
the query heads that share a KV head. The window itself stays. Scores follow NVIDIA/kvpress.

Where the budget is smaller than the window, a share keeps the latest entries only and a number is
refused; where the prompt is no longer than the budget, nothing is evicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmtok.pruning.cache import CacheReducer, Entries, check_kernel, votes


@dataclass(frozen=True, kw_only=True)
class SnapKV(CacheReducer):
    """Keep the KV entries that the last tokens of the prompt attend to.

    Attributes:
        window: tokens that vote and always stay.
        kernel: odd width of the smoothing.
    """

    reads_queries: ClassVar[bool] = True

    keep: int | float = 0.5
    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("window", 1)
        self.check_protected(window=self.window)
        check_kernel(self.name, self.kernel)

    def protected(self) -> tuple[int, int]:
        """The window."""
        return 0, self.window

    def score(self, entries: Entries, k: int, fixed: Tensor) -> Tensor:
        """Smoothed mean of the window's rows; infinite in the window."""
        window = min(self.window, len(entries))
        score = entries.by_head(votes(entries, window, self.kernel)).mean(1)
        return pad(score, (0, window), value=torch.inf)
