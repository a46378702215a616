"""Token-level correlation-guided compression: as many tokens as a crop has to say (2407.14439).

arXiv 2407.14439; the authors released no code. In every crop a patch is redundant if the keys of
many others are much like its own; the share of patches that are not is the crop's density of
information, and decides how many of its tokens stay. Those are the ones with the largest CLS
attention; the others join the kept token whose key is nearest.

The paper does not say from which similarity on keys are alike, nor how many make a patch redundant.
Both defaults are ours: they tell background from objects best on training scenes of the embedded
model (`benchmarks/tokencorr.py`); other models want their own. Deviations: by default the budget is
exact and shared out in proportion to what the crops' densities ask for (`adaptive=True`: just
that, at most `keep`); attention and keys are those of the tower's last layer alone, where the
authors also look at earlier layers. Crops are the tiles or views the model hands over; a newline
token has no key, counts as redundant and joins nothing. Cost: N² Dk in blocks, no N x N matrix; all
keys are compared, though only pairs of one crop count, so that the cost follows from N alone.

Not built: a baseline that takes patches of high pixel variance ("ink") for the informative ones,
against which a gain on documents would have to be shown, since tokens do not carry pixels; and a
term for the question, for which no formula was published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer
from mmtok.pruning.frames import split_frames
from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge, joined, merge_per_item
from mmtok.pruning.rank import apportion, top
from mmtok.tokens import Query, Selection, VisualTokens

BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class TokenCorr(Reducer):
    """Keep the most attended tokens of each crop, more of them where keys repeat less.

    Attributes:
        adaptive: each crop keeps its density's share of its tokens; `keep` is the most in all.
        similarity: keys whose cosine is above it are alike.
        repeats: a patch is redundant if at least this share of its crop is like it.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "keys"})

    keep: int | float = 0.25
    adaptive: bool = False
    similarity: float = 0.65
    repeats: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("similarity", -1, 1)
        self.check_number("repeats", 0, 1)
        if self.adaptive:
            self.let_content_decide()

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Measure the density of each crop, keep its share, merge the rest."""
        attention, keys = tokens.cls_attention, tokens.keys
        assert attention is not None, "select() refuses tokens without it"
        assert keys is not None, "select() refuses tokens without them"

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            position, seen = tokens.position[item, valid], attention[item, valid].float()
            crops = split_frames(position)
            key = unit(keys[item, valid])
            spare = redundant(key, position[:, 0], self.similarity, self.repeats)
            quotas = self.quotas([int((~spare[crop]).sum()) for crop in crops], crops, k)
            kept = torch.cat(
                [crop[top(seen[crop], q)] for crop, q in zip(crops, quotas, strict=True)]
            )
            return joined(nearest_kept(key, position[:, 0], kept, k))

        return merge_per_item(tokens, self.keep_count, choose)

    def quotas(self, telling: list[int], crops: list[Tensor], k: int) -> list[int]:
        """How many tokens each crop keeps.

        Args:
            telling: patches of each crop that are not redundant.
            crops: places of the tokens of each crop.
            k: the budget.
        """
        wanted = sum(telling)
        if self.adaptive and 0 < wanted <= k:
            return telling
        total = 1 if self.adaptive and wanted == 0 else k
        return apportion(telling, [len(crop) for crop in crops], total)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """All keys with one another, and with as many as may be kept."""
        k = self.keep_count(n)
        return 2 * n * (n + k) * key_width if k < n else 0


def redundant(key: Tensor, crop: Tensor, similarity: float, repeats: float) -> Tensor:
    """(N,) bool, whether at least a share `repeats` of a token's crop has keys like its own.

    Args:
        key: (N, Dk) rows of length 1; a token with a row of zeros is redundant.
        crop: (N,) int64 number of its crop.
        similarity: keys whose cosine is above it are alike.
        repeats: share of the tokens of the crop, the token itself not counted as like.
    """
    out = torch.empty(len(key), dtype=torch.bool, device=key.device)
    size = torch.bincount(crop)[crop]
    for start in range(0, len(key), BLOCK):
        rows = torch.arange(start, min(start + BLOCK, len(key)), device=key.device)
        alike = (key[rows] @ key.T > similarity) & (crop[rows, None] == crop)
        count = alike.scatter_(1, rows[:, None], False).sum(1)
        out[rows] = count >= repeats * size[rows]
    return out | (key == 0).all(1)


def nearest_kept(key: Tensor, crop: Tensor, kept: Tensor, columns: int) -> Tensor:
    """(N,) place of the kept token of the same crop with the nearest key; itself if kept.

    -1 where the crop keeps none, and for tokens without a key.

    Args:
        key: (N, Dk) rows of length 1 or 0.
        crop: (N,) int64 number of its crop.
        kept: (K,) int64 places.
        columns: similarities are computed for so many, so that the cost is known beforehand.
    """
    target = torch.full_like(crop, -1)
    others = torch.ones_like(crop, dtype=torch.bool).index_fill(0, kept, False)
    asked = torch.cat([kept, others.nonzero().squeeze(1)])[:columns]
    for start in range(0, len(key), BLOCK):
        rows = torch.arange(start, min(start + BLOCK, len(key)), device=key.device)
        similar = (key[rows] @ key[asked].T)[:, : len(kept)]
        best = similar.masked_fill(crop[rows, None] != crop[kept], -torch.inf).max(1)
        target[rows] = kept[best.indices].masked_fill(best.values == -torch.inf, -1)
    target = target.masked_fill((key == 0).all(1), -1)
    target[kept] = kept
    return target
