"""HoloV: a quota for every stretch of the picture, so that none is forgotten (arXiv 2510.02912).

Authors' repository: obananas/HoloV. The tokens are cut into 16 stretches. A token scores by its CLS
attention and by how much its similarity to the others of its stretch varies, the two brought to
one scale; the mean of a stretch's scores is its share of the budget. Inside a stretch the largest
CLS attention wins.

As in the released code the stretches follow the raster order, 2-D crops are not built, and the
token's similarity to itself counts as 0. Deviations: a quota above the size of its stretch goes to
the others (theirs is filled with zero tokens), so the budget is exact; the order of the picture is
kept; fewer than 16 tokens make fewer stretches; attention is that of the tower's last layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.greedy import unit
from mmtok.pruning.rank import apportion, top
from mmtok.tokens import Query, Selection, VisualTokens

SCALE, EPS = 1000.0, 1e-6


@dataclass(frozen=True, kw_only=True)
class HoloV(Reducer):
    """Keep the most attended tokens of each stretch, as many as its quota.

    Attributes:
        chunks: number of stretches.
        alpha: weight of the variance of similarities against attention.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    keep: int | float = 0.25
    chunks: int = 16
    alpha: float = 0.09

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("chunks", 1)
        self.check_number("alpha")

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Score the stretches, share out the budget, take the most attended of each."""
        attention = tokens.cls_attention
        assert attention is not None, "select() refuses tokens without it"

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            seen, x = attention[item, valid].float(), tokens.features[item, valid]
            parts = torch.arange(len(valid), device=valid.device).tensor_split(
                min(self.chunks, len(valid))
            )
            weights = [stretch_score(x[part], seen[part], self.alpha) for part in parts]
            quotas = apportion(weights, [len(part) for part in parts], k, leftover="weight")
            chosen = [
                part[top(seen[part], quota)] for part, quota in zip(parts, quotas, strict=True)
            ]
            return torch.cat(chosen)

        return per_item(tokens, self.keep_count, choose)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """One product of each stretch with itself."""
        if self.keep_count(n) == n:
            return 0
        small, larger = divmod(n, min(self.chunks, n))
        count = min(self.chunks, n) - larger
        return 2 * width * (count * small**2 + larger * (small + 1) ** 2)


def stretch_score(x: Tensor, attention: Tensor, alpha: float) -> float:
    """Mean score of one stretch's tokens: (n, D) features and (n,) CLS attention."""
    x = unit(x)
    similar = (x @ x.T).fill_diagonal_(0)
    others = max(len(x) - 1, 1)
    mean = similar.sum(1, keepdim=True) / others
    variance = (similar - mean).square().sum(1) / others
    seen = SCALE * attention
    scale = seen.abs().mean() / (variance.abs().mean() + EPS)
    return float((seen + alpha * scale * variance).mean())
