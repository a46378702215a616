"""Which tokens of a frame matter most, with or without a CLS token."""

from __future__ import annotations

from torch import Tensor

from mmtok.pruning.frames import Clip
from mmtok.pruning.greedy import unit
from mmtok.pruning.rank import top
from mmtok.tokens import VisualTokens


def salience(tokens: VisualTokens, item: int, valid: Tensor, clip: Clip) -> Tensor:
    """(N,) the CLS attention; without it, how far in cosine a token is from the mean
    direction of its frame.

    Args:
        tokens: the batch.
        item: which of it.
        valid: (N,) int64 places of its valid tokens.
        clip: those tokens by frame.
    """
    if tokens.cls_attention is not None:
        return tokens.cls_attention[item, valid].float()
    x = unit(tokens.features[item, valid])
    return 1 - (x * unit(clip.means(x))[clip.frame]).sum(1)


def highest(score: Tensor, among: Tensor, k: int) -> Tensor:
    """(k,) the places of `among` with the highest score, ties to the lower place."""
    return among[top(score[among], k)]
