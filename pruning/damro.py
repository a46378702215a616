"""DAMRO: contrast with what the outliers of the vision tower alone would say (arXiv 2410.04514).

Authors' repository: coder-gx/DAMRO. No token leaves. The k patches that CLS attends to most are
taken for outliers that hold no place of the picture; a second branch answers the prompt with these
as its only visual tokens, in order of their attention. With l and m the logits of the two, the next
token comes from (1 + alpha) l - alpha m, among those whose probability under l is at least beta
times the largest one.

As in the released code the attention is that of unsplit heads, a softmax over the products of whole
queries and keys; `per_head=True` takes the mean over heads, as CLS attention elsewhere in mmtok.
The same outliers are kept from other methods by `outliers`.

Deviations: attention is that of the tower's last layer, as the paper has it, where the code reads
the layer the model takes features from. Temperature, top-k and top-p act behind the contrast; the
released code ignores them. Batches work, with a KV cache for each branch. The crops of an AnyRes
image compete for its k outliers. Where patches merge inside the tower, a group is one outlier, so
that an image of few groups has fewer than k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer
from mmtok.pruning.outliers import find_outliers
from mmtok.pruning.stages import LogitStage
from mmtok.tokens import Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class DAMRO(Reducer):
    """Contrast every new token's logits with those of a prompt that sees outliers only.

    Attributes:
        alpha: strength of the contrast; 0 turns it off.
        beta: a token needs this share of the likeliest one's probability, in (0, 1].
        outliers: visual tokens of the second branch, for each image, at most.
        per_head: whether attention is the mean over heads.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "cls_joint"})

    alpha: float = 2.0
    beta: float = 0.1
    outliers: int = 10
    per_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != 1.0 or not isinstance(self.keep, float):
            raise InputError(f"damro: keep must be 1.0, since no token leaves, got {self.keep!r}")
        self.check_number("alpha")
        self.check_number("beta", 0, 1, above=True)
        self.check_number("outliers", 1)

    def on_logits(self) -> LogitStage | None:
        """The contrast; none if it has no strength."""
        if self.alpha == 0:
            return None
        return LogitStage(
            negative=self.negative,
            count=lambda n: min(n, self.outliers),
            contrast=self.contrast,
        )

    def negative(self, tokens: VisualTokens) -> Selection:
        """The outliers of each item; the largest takes the first place."""
        indices, merge = [], []
        for item in range(len(tokens.mask)):
            order = find_outliers(tokens, item, self.outliers, per_head=self.per_head)
            indices.append(order.sort().values)
            slot = torch.arange(len(order), device=order.device)
            merge.append((order, slot, torch.ones(len(order), device=order.device)))
        return Selection(indices=indices, merge=merge)

    def contrast(self, logits: Tensor, other: Tensor) -> Tensor:
        """(B, V) contrasted logits; -inf where a token is implausible without the contrast."""
        plausible = logits >= math.log(self.beta) + logits.amax(-1, keepdim=True)
        contrasted = (1 + self.alpha) * logits - self.alpha * other
        return contrasted.masked_fill(~plausible, -torch.inf)
