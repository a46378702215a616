"""VisionZip: dominant tokens by CLS attention, the others merged into a few (arXiv 2412.04467).

Authors' repository: dvlab-research/VisionZip. Most of the budget goes to the patches with the
largest CLS attention. Of those that remain, evenly spaced ones are targets; every other one joins
the target its key is most similar to. By default 10 of 64 tokens are such contextual ones.

Deviations: a contextual token is the mean of its target and all that joined it; the released code
adds the target to the mean of the others, which about doubles its length (`compat="repo"`). The CLS
token is not kept, one more patch is. Tokens stay in the order of the picture, a contextual one in
its target's place. Keys are those of the tower's last layer with all heads side by side, where the
authors average the heads of the last layer but one; merging happens behind the projector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer
from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge, joined, merge_per_item
from mmtok.pruning.rank import top
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class VisionZip(Reducer):
    """Keep dominant tokens and merge the rest into contextual ones.

    Attributes:
        contextual: how many of the kept tokens are merged ones: an int, or a share of them,
            rounded half up; one dominant token stays in any case.
        compat: "repo" for the released code's sum of target and mean.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "keys"})

    keep: int | float = 64
    contextual: int | float = 10 / 64
    compat: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        share = isinstance(self.contextual, float) and 0 <= self.contextual < 1
        if not share and (isinstance(self.contextual, float) or self.contextual < 0):
            raise InputError(
                "visionzip: contextual must be an int >= 0 or a float in [0, 1), "
                f"got {self.contextual!r}"
            )

    def split(self, k: int) -> tuple[int, int]:
        """How many of k tokens are dominant, and how many contextual."""
        merged = self.contextual
        if isinstance(merged, float):
            merged = math.floor(merged * k + 0.5)
        merged = min(merged, k - 1)
        return k - merged, merged

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Choose the dominant tokens, then group the others."""
        attention, keys = tokens.cls_attention, tokens.keys
        assert attention is not None, "select() refuses tokens without it"
        assert keys is not None, "select() refuses tokens without them"

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            dominant, contextual = self.split(k)
            target = group(attention[item, valid], keys[item, valid], dominant, contextual)
            kept, (source, slot, weight) = joined(target)
            if self.compat == "repo":
                size = torch.bincount(slot).float()
                weight = (1 / (size - 1).clamp_min(1))[slot]
                weight = weight.masked_fill(source == target[source], 1)
            return kept, (source, slot, weight)

        return merge_per_item(tokens, self.keep_count, choose)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """Keys of the tokens that join, times keys of their targets."""
        k = self.keep_count(n)
        dominant, contextual = self.split(k)
        return 2 * (n - dominant) * contextual * key_width if k < n else 0


def group(attention: Tensor, keys: Tensor, dominant: int, contextual: int) -> Tensor:
    """(N,) place of the token that each token goes into: itself, a target, or -1 for none.

    Args:
        attention: (N,) CLS attention.
        keys: (N, Dk).
        dominant: how many tokens with the largest attention stay as they are.
        contextual: how many evenly spaced tokens of the others are targets.
    """
    target = torch.full_like(attention, -1, dtype=torch.int64)
    first = top(attention.float(), dominant)
    target[first] = first
    rest = (target < 0).nonzero().squeeze(1)
    if contextual:
        step = len(rest) // contextual
        centre = rest[torch.arange(contextual, device=rest.device) * step]
        similar = unit(keys[rest]) @ unit(keys[centre]).T
        target[rest] = centre[similar.argmax(1)]
        target[centre] = centre
    return target
