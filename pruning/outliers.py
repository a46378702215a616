"""Outliers: a guard in front of other methods, which then do not see DAMRO's outliers (2410.04514).

DAMRO finds patches of high CLS attention that hold no place of the picture (arXiv 2410.04514,
authors' repository coder-gx/DAMRO). A method that keeps what CLS attends to keeps these first. Here
they leave, and what follows chooses among the others:

    reduce=["outliers(count=10)", "fastervlm(keep=64)"]

Using the detector so is our own idea, not the authors'. A share as the next method's `keep` is one
of the tokens that are left. One token stays, however few there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.outliers import find_outliers
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class Outliers(Reducer):
    """Drop the tokens that CLS attends to most.

    Attributes:
        count: how many of each image.
        per_head: whether attention is the mean over heads, rather than that of unsplit heads.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "cls_joint"})

    count: int = 10
    per_head: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != 1.0 or not isinstance(self.keep, float):
            raise InputError(
                f"outliers: count says how many leave, keep must be 1.0, got {self.keep!r}"
            )
        self.check_number("count")

    @property
    def keeps_all(self) -> bool:
        """Whether nothing leaves."""
        return self.count == 0

    def keep_count(self, n: int) -> int:
        """All but `count`, at least one."""
        return max(n - self.count, 1)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """All others, in their order."""

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            gone = find_outliers(tokens, item, len(valid) - k, per_head=self.per_head)
            return (~torch.isin(valid, gone)).nonzero().squeeze(1)

        return per_item(tokens, self.keep_count, choose)
