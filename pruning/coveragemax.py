"""CoverageMax, published as "MMTok": cover the question and the picture (arXiv 2508.18264).

Authors' repository: Ironieser/MMTok. Every text token and every visual token spreads one unit over
the visual tokens by a sharp softmax of cosines; greedy choice maximises what the chosen tokens
cover of it, text and picture weighted 1 to alpha. Gains are submodular, so stale ones are bounds
and few are recomputed.

Deviations: all text of the prompt asks, template included, where the authors pick out the
question's keywords; without any text the picture alone is covered. Visual tokens are compared with
one another behind the projector: the tower's own features, which the authors use, are not at hand.
One matrix of (text + N) x N numbers is held, also above N = 8192.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.coverage import attention_like, greedy_coverage
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class CoverageMax(Reducer):
    """Keep the k tokens that best cover the question and the picture.

    Attributes:
        alpha: weight of the picture against the text.
        text_temperature: of the softmax of text over visual tokens.
        image_temperature: of the softmax of visual tokens over visual tokens.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"query"})

    keep: int | float = 0.1
    alpha: float = 0.5
    text_temperature: float = 0.02
    image_temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("alpha")
        # Cosines are not known more finely than this.
        self.check_number("text_temperature", 1e-6)
        self.check_number("image_temperature", 1e-6)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Greedy coverage of both."""
        assert query is not None, "select() refuses a missing query"

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            x = tokens.features[item, valid]
            text = query.embeddings[item, query.mask[item]].to(x)
            return greedy_coverage(self.cover(text, x, x), k)

        return per_item(tokens, self.keep_count, choose)

    def cover(self, text: Tensor, x: Tensor, encoded: Tensor) -> Tensor:
        """(N, T + N) how well each token covers each text token and each visual token.

        Args:
            text: (T, D) embeddings; T may be 0.
            x: (N, D) visual tokens beside which the text stands.
            encoded: (N, De) what visual tokens are compared with one another by.
        """
        image = self.alpha / len(x) * attention_like(encoded, encoded, self.image_temperature)
        if not len(text):
            return image
        asked = attention_like(text, x, self.text_temperature) / len(text)
        return torch.cat([asked, image], 1)

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """Text and visual tokens, times visual tokens."""
        return 2 * n * (n + text) * width if self.keep_count(n) < n else 0
