"""CDPruner: different tokens that matter to the question (arXiv 2506.10967).

Authors' repository: Theia-4869/CDPruner. Relevance is the mean cosine of a token to the text,
brought to (0, 1] per picture; it weighs the cosine kernel of a determinantal point process, whose
most likely subset of k tokens is found greedily.

Deviations: relevance is measured behind the projector, to the embeddings of all text of the prompt,
where the authors take CLIP's two towers. There the similarity of patches and text is inverted and
their code flips its sign; here it is not (`compat="repo"` flips it). Extremes are those of one
picture, not of the batch. Where the budget exceeds the rank, the choice starts anew among the other
tokens, where the authors choose some twice. No N x N matrix is formed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer, per_item
from mmtok.pruning.determinant import by_gram, determinant_flops, greedy_determinant
from mmtok.pruning.greedy import unit
from mmtok.pruning.work import Work
from mmtok.tokens import Query, Selection, VisualTokens

EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class CDPruner(Reducer):
    """Keep the k tokens that are most probable under a process conditioned on the question.

    Attributes:
        theta: in [0, 1), how much relevance r counts against diversity: it becomes
            exp(r theta / (2 - 2 theta)). None: r itself.
        compat: "repo" for the released code's inverted relevance.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"query"})

    keep: int | float = 0.1
    theta: float | None = None
    compat: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("theta", 0, 1, below=True)

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Greedy choice by volume."""
        assert query is not None, "select() refuses a missing query"

        work = Work()

        def choose(item: int, valid: Tensor, k: int) -> Tensor:
            x = tokens.features[item, valid]
            text = query.embeddings[item, query.mask[item]].to(x)
            work.flops += 2 * x.numel() * (len(text) > 0)
            work.flops += determinant_flops(len(x), k, x.shape[1], gram=by_gram(x, k))
            return greedy_determinant(x, self.relevance(text, x), k)

        return replace(per_item(tokens, self.keep_count, choose), flops=work.flops)

    def relevance(self, text: Tensor, x: Tensor) -> Tensor:
        """(N,) how much each token has to do with the text, above 0.

        Args:
            text: (T, D) embeddings; without any all tokens count the same.
            x: (N, D) tokens beside which the text stands.

        Raises:
            InputError: the text holds NaN or infinite values.
        """
        x = unit(x)
        cosine = x @ unit(text).mean(0) if len(text) else x.new_zeros(len(x))
        if not bool(torch.isfinite(cosine).all()):
            raise InputError("cdpruner: the query's embeddings hold NaN or infinite values")
        if self.compat == "repo":
            cosine = -cosine
        spread = cosine.max() - cosine.min()
        if float(spread) <= EPS:
            return torch.ones_like(cosine)
        share = (cosine - cosine.min() + EPS) / spread
        if self.theta is None:
            return share
        # A factor common to all tokens chooses the same ones; the largest power may overflow.
        return ((share - share.max()) * self.theta / (2 - 2 * self.theta)).exp()

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """Tokens times the mean text, and the greedy choice."""
        k = self.keep_count(n)
        if k == n:
            return 0
        return 2 * n * width * (text > 0) + determinant_flops(n, k, width)
