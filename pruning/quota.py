"""QuoTA: the frames that matter to the question get more of the budget (arXiv 2503.08689).

Authors' repository: MAC-AutoML/QuoTA. Every frame has a score p in [0, 1] of how much it helps to
answer; the budget is shared out by p², no frame above its size, and each frame is compressed to its
share: pooled, or sampled along the raster with both ends.

The scores: `scorer="query"`, cheap, compares the mean of a frame with the text of the prompt by
cosine, brought to [1/2, 1] over the frames of the clip (our choice: the least alike gets a quarter
of what the most alike gets). The authors ask a second vision-language
model about every frame; `mmtok.pruning.scorers` does that with any model, or with CLIP, and its
scores are given as `scorer=[0.9, 0.1, ...]`. A function may score too; what it costs is not in the
ledger.

Deviations: the released capping loses or overshoots part of the budget; here it is shared out by
exact water-filling and largest remainder. Blocks are pooled as in `pool`, so the count is exact,
where the authors round a frame's share down to s x s or (s + 1) x s. `compat="repo"` does both as
they do, up to `keep` tokens in all and, with bilinear resizing, up to the size of a frame, where
theirs may make more tokens than there were. Their merging variants do not run and are not built.
Newline tokens count as tokens and leave first. The tiles and views of a still are its frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer
from mmtok.pruning.blocks import (
    View,
    merge_views,
    newlines_too,
    pool_views,
    pooled,
    resized,
    split_views,
)
from mmtok.pruning.greedy import unit
from mmtok.pruning.merging import Merge, merge_per_item, slots_of_their_own
from mmtok.pruning.rank import apportion, with_least
from mmtok.tokens import Query, Selection, VisualTokens

Scorer = Callable[[list[Tensor], Tensor], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class QuoTA(Reducer):
    """Share the budget out among frames by their scores, then compress each frame.

    Attributes:
        scorer: "query", or the scores of the frames of every clip, numbers in [0, 1], or a function
            of the frames' tokens, a list of (n, D), and of the text's embeddings (T, D), that gives
            them; without a text it gets none, (0, D).
        compress: "pool" frames into blocks, or take an "index" subset of their tokens; "bilinear"
            resizing goes with compat="repo".
        least: tokens that every frame keeps whatever its score, as far as the budget goes.
        compat: "repo" for the authors' shares and sizes, `keep` being the most.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"query"})

    keep: int | float = 0.25
    scorer: Literal["query"] | tuple[float, ...] | Scorer = "query"
    compress: Literal["pool", "index", "bilinear"] = "pool"
    least: int = 0
    compat: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("least")
        if isinstance(self.scorer, list | tuple):
            object.__setattr__(self, "scorer", tuple(_checked(self.scorer)))
        if self.compat == "repo":
            self.let_content_decide()
        if (self.compress == "bilinear" and self.compat == "paper") or (
            self.least and self.compat == "repo"
        ):
            raise InputError(
                "quota: compress='bilinear' goes with compat='repo', and least goes without it"
            )

    def after_encoder(self, tokens: VisualTokens, query: Query | None) -> Selection:
        """Score the frames, share the budget out, compress."""
        if self.scorer == "query" and query is None:
            raise InputError("quota(scorer='query') needs a query: pass the text's embeddings")

        def choose(item: int, valid: Tensor, k: int) -> Merge:
            views, newline = split_views(tokens, item, valid)
            x = tokens.features[item, valid]
            text = x[:0] if query is None else query.embeddings[item, query.mask[item]].to(x)
            scores = self._scores(x, text, views)
            sizes = [len(view.places) for view in views]
            in_picture = min(k, sum(sizes))
            weights = [score**2 for score in scores]
            if self.compat == "repo":
                quotas = released_quotas(
                    weights, sizes, in_picture, capped=self.compress != "bilinear"
                )
            else:
                quotas = with_least(weights, sizes, in_picture, self.least)
            return newlines_too(self._compress(views, quotas), newline, k - in_picture)

        return merge_per_item(tokens, self.keep_count, choose)

    def _compress(self, views: list[View], quotas: list[int]) -> Merge:
        if self.compress == "index":
            return slots_of_their_own(sample(views, quotas))
        if self.compat == "paper":
            return pool_views(views, quotas)
        parts = []
        for view, quota in zip(views, quotas, strict=True):
            rows, columns = released_shape(view, quota)
            if self.compress == "bilinear":
                parts.append(resized(view.h, view.w, rows, columns))
            else:
                parts.append(pooled(view.h, view.w, [columns] * rows))
        return merge_views(views, parts)

    def _scores(self, x: Tensor, text: Tensor, views: list[View]) -> list[float]:
        if self.scorer == "query":
            return query_scores(x, text, views)
        if callable(self.scorer):
            return self._given(
                _checked(self.scorer([x[view.places] for view in views], text)), views
            )
        return self._given(self.scorer, views)

    def _given(self, scores: Sequence[float], views: list[View]) -> list[float]:
        if len(scores) != len(views):
            raise InputError(
                f"quota: scorer gives {len(scores)} scores for a clip of {len(views)} frames; "
                "expected one per frame that the encoder hands over"
            )
        return list(scores)

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


def released_quotas(
    weights: Sequence[float], sizes: Sequence[int], total: int, *, capped: bool
) -> list[int]:
    """Tokens of each frame as the authors' code shares them out, but at most `total` in all.

    Args:
        weights: not negative; if all are 0 they count as equal.
        sizes: tokens of each frame, the most it keeps.
        total: the budget.
        capped: whether what exceeds a frame's size goes to the others. In one pass from the first
            frame to the last, which may lose some or hand some out twice.
    """
    weights = list(weights) if sum(weights) > 0 else [1.0] * len(weights)
    shares = [weight / sum(weights) for weight in weights]
    if capped:
        shares = capped_in_one_pass(shares, [size / total for size in sizes])
    # Ten digits: a share is a product, and 7.0 must not become 6.
    quotas = [
        min(math.floor(round(total * share, 10)), size)
        for share, size in zip(shares, sizes, strict=True)
    ]
    if not any(quotas):
        return apportion(weights, sizes, 1)
    return apportion(quotas, quotas, min(sum(quotas), total))


def capped_in_one_pass(shares: Sequence[float], caps: Sequence[float]) -> list[float]:
    """Cut shares down to their caps, and hand the excess out as the authors' code does."""
    excess = sum(max(share - cap, 0) for share, cap in zip(shares, caps, strict=True))
    out = [min(share, cap) for share, cap in zip(shares, caps, strict=True)]
    total = sum(out)
    for i, cap in enumerate(caps):
        if out[i] < cap:
            out[i] += out[i] / total * excess
            excess += max(out[i] - cap, 0)
            out[i] = min(out[i], cap)
    return out


def released_shape(view: View, quota: int) -> tuple[int, int]:
    """Rows and columns that the authors compress a frame to: s x s or (s + 1) x s."""
    side = math.isqrt(quota)
    rows = side + 1 if (side + 1) * side <= quota else side
    return min(rows, view.h), min(side, view.w)


def _checked(scores: Sequence[float]) -> list[float]:
    scores = [float(score) for score in scores]
    if not scores or not all(0 <= score <= 1 for score in scores):
        raise InputError(f"quota: scores must be finite numbers in [0, 1], got {scores!r}")
    return scores
