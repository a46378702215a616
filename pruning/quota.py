"""QuoTA: the frames that matter to the question get more of the budget (arXiv 2503.08689).

Authors' repository: MAC-AutoML/QuoTA. Every frame has a score p in [0, 1] of how much it helps to
answer; the budget is shared out by p², no frame above its size, and each frame is compressed to its
share: pooled, or sampled along the raster with both ends.

The scores: `scorer="query"`, cheap, compares the mean of a frame with the text of the prompt by
cosine, brought to [1/2, 1] over the frames of the clip (our choice: the least alike gets a quarter
of what the most alike gets). The authors ask a second vision-language
model about every frame; `mmtok.pruning.scorers` does that with any model, or with CLIP, and its
scores are given as `scorer=[0.9, 0.1, ...]`.

Deviations: the released capping loses or overshoots part of the budget; here it is shared out by
exact water-filling and largest remainder. Blocks are pooled as in `pool`, so the count is exact,
where the authors round a frame's share down to s x s or (s + 1) x s; bilinear resizing, which can
make more tokens than there were, and the merging variants, which do not run, are not built.
A minimum of tokens for every frame is not built either: a frame of low score may vanish.
Newline tokens count as tokens and leave first. The tiles and views of a still are its frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer
from mmtok.pruning.blocks import View, newlines_too, pool_views, split_views
from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge, merge_per_item, slots_of_their_own
from mmtok.pruning.rank import apportion
from mmtok.tokens import Query, Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class QuoTA(Reducer):
    """Share the budget out among frames by their scores, then compress each frame.

    Attributes:
        scorer: "query", or the scores of the frames of every clip, numbers in [0, 1].
        compress: "pool" frames into blocks, or take an "index" subset of their tokens.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"query"})

    keep: int | float = 0.25
    scorer: Literal["query"] | tuple[float, ...] = "query"
    compress: Literal["pool", "index"] = "pool"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compress not in ("pool", "index"):
            raise InputError(f"quota: compress must be 'pool' or 'index', got {self.compress!r}")
        if isinstance(self.scorer, list | tuple):
            object.__setattr__(self, "scorer", _checked(self.scorer))
        elif self.scorer != "query":
            raise InputError(
                f"quota: scorer must be 'query' or a list of scores in [0, 1], got {self.scorer!r}"
            )

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Score the frames, share the budget out, compress."""
        if self.scorer == "query" and query is None:
            raise InputError("quota(scorer='query') needs a query: pass the text's embeddings")

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            views, newline = split_views(tokens, item, valid)
            if query is not None and self.scorer == "query":
                x = tokens.features[item, valid]
                text = query.embeddings[item, query.mask[item]].to(x)
                scores = query_scores(x, text, views)
            else:
                scores = self._given(len(views))
            sizes = [len(view.places) for view in views]
            in_picture = min(k, sum(sizes))
            quotas = apportion([score**2 for score in scores], sizes, in_picture)
            if self.compress == "pool":
                merge = pool_views(views, quotas)
            else:
                merge = slots_of_their_own(sample(views, quotas))
            return newlines_too(merge, newline, k - in_picture)

        return merge_per_item(tokens, self.keep_count, choose)

    def _given(self, frames: int) -> list[float]:
        if len(self.scorer) != frames:
            raise InputError(
                f"quota: scorer gives {len(self.scorer)} scores for a clip of {frames} frames; "
                "expected one per frame that the encoder hands over"
            )
        return [float(score) for score in self.scorer]

    def select_flops(self, n: int, width: int, *, key_width: int = 0, text: int = 0) -> int:
        """Tokens times the mean text; nothing where the scores are given."""
        asks = self.scorer == "query" and text > 0
        return 2 * n * width if asks and self.keep_count(n) < n else 0


def query_scores(x: Tensor, text: Tensor, views: list[View]) -> list[float]:
    """Mean cosine of each view's mean token to the text, brought to [1/2, 1] over the views.

    Args:
        x: (N, D) tokens.
        text: (T, D) embeddings beside which the tokens stand; without any all views score 1.
        views: of one item.
    """
    if not len(text):
        return [1.0] * len(views)
    towards = unit(text).mean(0)
    x = x.to(towards)
    along = x @ towards
    cosines = [
        float(along[view.places].mean() / x[view.places].mean(0).norm().clamp_min(1e-12))
        for view in views
    ]
    low, high = min(cosines), max(cosines)
    return [1 - (high - c) / (high - low) / 2 if high - low > 1e-6 else 1.0 for c in cosines]


def sample(views: list[View], quotas: list[int]) -> Tensor:
    """Ascending places: of each view as many as its quota, from its first token to its last."""
    places = []
    for view, quota in zip(views, quotas, strict=True):
        step = torch.arange(quota, device=view.places.device)
        places.append(view.places[step * (len(view.places) - 1) // max(quota - 1, 1)])
    return torch.cat(places).sort().values


def _checked(scores: list[float] | tuple[float, ...]) -> tuple[float, ...]:
    good = [
        isinstance(score, int | float) and math.isfinite(score) and 0 <= score <= 1
        for score in scores
    ]
    if not scores or not all(good):
        raise InputError(f"quota: scores must be finite numbers in [0, 1], got {scores!r}")
    return tuple(float(score) for score in scores)
