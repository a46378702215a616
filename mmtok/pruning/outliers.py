"""Outliers of a vision tower: patches of high CLS attention that hold no place of the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.pruning.rank import top
from mmtok.tokens import VisualTokens


def find_outliers(tokens: VisualTokens, item: int, k: int, *, per_head: bool = False) -> Tensor:
    """The k tokens of one item that CLS attends to most (arXiv 2410.04514).

    Args:
        tokens: with `cls_joint`, or `cls_attention` if `per_head`.
        item: which.
        k: how many; all if there are fewer.
        per_head: take the mean of the heads' attention, not that of unsplit heads.

    Returns:
        (k,) int64 places, the largest attention first, ties to the lower index. Patches that merged
        in the tower are one token.

    Raises:
        InputError: the tokens carry no such attention.
    """
    attention = tokens.cls_attention if per_head else tokens.cls_joint
    if attention is None:
        raise InputError("outliers are found by CLS attention, which these tokens do not carry")
    valid = tokens.leads[item].nonzero().squeeze(1)
    return valid[top(attention[item, valid].float(), k)]


def joint_attention(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """(C, S) softmax row of the first token's query, heads unsplit, in fp32 at least.

    Args:
        query: (C, S, D) projections, all heads side by side.
        key: (C, S, D).
        mask: (C, 1, S, S) added to the scores.
    """
    first, key = (x if x.dtype == torch.float64 else x.float() for x in (query[:, :1], key))
    scores = first @ key.transpose(1, 2) * key.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask[:, 0, :1]
    attention: Tensor = scores.softmax(-1)[:, 0]
    return attention
