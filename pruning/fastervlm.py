"""FasterVLM: the patches the CLS token attends to most (arXiv 2412.01818).

Authors' repository: Theia-4869/FasterVLM. Attention is the mean over heads.

Deviations: the attention is that of the tower's last layer, where the authors read the layer their
model takes features from (the last but one in LLaVA). Where the model pools patches, a token gets
the mean attention of its patches. Newline tokens have no patch and leave first. Outliers of the
tower are among the first: see `outliers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.rank import top
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class FasterVLM(Reducer):
    """Keep the k tokens with the largest CLS attention."""

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    keep: int | float = 0.25

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """A top-k, ties to the lower index."""
        attention = tokens.cls_attention
        assert attention is not None, "select() refuses tokens without it"

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            return top(attention[item, valid].float(), k)

        return per_item(tokens, self.keep_count, choose)
