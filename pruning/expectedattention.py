"""ExpectedAttention: the attention that coming queries are expected to pay, without seeing them
(arXiv 2510.00636).

The queries of the prompt, before rotation, give a mean and a covariance per head; rotated to the
next `ahead` positions on average, they stand for the queries to come. The expected weight of a key
is that of a Gaussian query, softmax over keys, mean over the query heads that share a KV head, and
times the norm of the value. The first `sinks` entries neither vote nor compete: they stay.

Scores follow NVIDIA/kvpress. Queries before rotation are had by rotating back what the layer used,
which holds for every family whose rotation pairs the two halves of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmtok.pruning.cache import CacheReducer, Entries


@dataclass(frozen=True, kw_only=True)
class ExpectedAttention(CacheReducer):
    """Keep the KV entries that the queries to come are expected to read.

    Attributes:
        sinks: entries at the beginning that always stay.
        ahead: positions behind the prompt over which the rotation is averaged.
        epsilon: added to the expected weight before it meets the value's norm.
    """

    reads_queries: ClassVar[bool] = True

    keep: int | float = 0.5
    sinks: int = 4
    ahead: int = 512
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_protected(sinks=self.sinks)
        self.check_number("ahead", 1)
        self.check_number("epsilon")

    def protected(self) -> tuple[int, int]:
        """The sinks."""
        return self.sinks, 0

    def score(self, entries: Entries, k: int, fixed: Tensor) -> Tensor:
        """Expected attention times the value's norm; infinite at the sinks."""
        n, (groups, _, size) = len(entries), entries.keys.shape
        sinks = min(self.sinks, n - 1)
        query, turn = entries.queries(), None
        if entries.rotary is not None:
            cos, sin = entries.rotary
            query = turned(query, cos, -sin) / (cos**2 + sin**2)
            turn = self._mean_turn(entries)
        query = query[:, sinks:]
        mean = query.mean(1)
        off = query - mean[:, None]
        spread = off.transpose(1, 2) @ off / off.shape[1]
        if turn is not None:
            mean = turned(mean, *turn)
            spread = turned(turned(spread, *turn).transpose(1, 2), *turn)
        keys = entries.keys[:, sinks:].float().repeat_interleave(len(query) // groups, dim=0)
        along = (keys @ mean[..., None]).squeeze(-1)
        across = (keys @ spread * keys).sum(-1)
        entries.flops += 2 * len(query) * (n - sinks) * size * (2 * size + 1)
        weight = (along * entries.scale + across * entries.scale**2 / 2).softmax(-1)
        length = entries.values[:, sinks:].float().norm(dim=-1)
        score = (entries.by_head(weight).mean(1) + self.epsilon) * length
        return pad(score, (sinks, 0), value=torch.inf)

    def _mean_turn(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """Mean cosines and sines (h,) of the next positions, counted from the last token's."""
        if entries.rotary is None or entries.ahead is None:
            raise NotImplementedError
        (cos, sin), (more_cos, more_sin) = entries.rotary, entries.ahead(self.ahead)
        size = (cos[-1] ** 2 + sin[-1] ** 2).sqrt()  # some models scale by their rotation
        c, s = cos[-1] / size, sin[-1] / size
        more_cos, more_sin = more_cos.mean(0), more_sin.mean(0)
        return c * more_cos - s * more_sin, s * more_cos + c * more_sin


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(..., h) rotated by cosines and sines (..., h), which pair the two halves of a head."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
