"""What a reducer hands to the seams that reach inside a model: the tower's layers, the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmtok.tokens import Selection, VisualTokens


@dataclass(frozen=True, kw_only=True)
class TowerTokens:
    """The tokens of C crops in one layer of a vision tower, as an EncoderStage's rule sees them.

    Attributes:
        layer: the layer that runs, from 0.
        layers: how many layers run up to the one whose output the model reads.
        features: (C, n, D).
        keys: (C, n, d) keys of the layer, mean over its heads; None behind a layer.
        size: (C, n) patches in each token, as floats; 0 at padding.
        free: (C, n) bool, tokens that may merge: all but CLS, padding, and patches of a crop's
            border that never become visual tokens.
        start: (C,) int64 free tokens that entered the tower.
        target: (C,) int64 free tokens that each crop keeps at least.
        first: (C, n) int64 place, in the sequence that entered, of each token's first patch.
        grid: (rows, columns) of patches.
        prefix: tokens before the patches in the sequence that entered.
    """

    layer: int
    layers: int
    features: Tensor
    keys: Tensor | None
    size: Tensor
    free: Tensor
    start: Tensor
    target: Tensor
    first: Tensor
    grid: tuple[int, int]
    prefix: int


@dataclass(frozen=True, kw_only=True)
class EncoderStage:
    """Merge patches inside the vision tower, so that later layers read fewer tokens.

    Attributes:
        rule: tokens -> ((C, n) int64 labels, FLOPs spent). Tokens with one label become one, the
            mean of their patches. Labels lie in [0, n); a token that is not free keeps its own.
        keep_count: visual tokens of an item -> how many of them the stage must leave at least.
        place: between "attention" and MLP of a layer, or behind a "layer".
        proportional: whether a token weighs as many patches as it holds in later attention.
    """

    rule: Callable[[TowerTokens], tuple[Tensor, int]]
    keep_count: Callable[[int], int]
    place: Literal["attention", "layer"]
    proportional: bool


@dataclass(frozen=True, kw_only=True)
class LogitStage:
    """Contrast the logits with those of the same prompt on other visual tokens.

    Attributes:
        negative: the tokens that leave the vision tower -> those that the other prompt holds.
        count: tokens of an item -> how many of them the other prompt holds.
        contrast: (logits (B, V), logits of the other prompt (B, V)) -> (B, V).
    """

    negative: Callable[[VisualTokens], Selection]
    count: Callable[[int], int]
    contrast: Callable[[Tensor, Tensor], Tensor]
