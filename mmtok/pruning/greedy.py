"""Greedy selection of far-apart tokens: the mathematics that diversity methods share.

Cosine distance in fp32; a zero vector is at distance 1 from everything. Ties go to the lower index.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

# Above this many tokens the similarity rows are computed step by step: no N x N matrix.
GRAM_LIMIT = 8192


def unit(x: Tensor) -> Tensor:
    """(N, D) rows scaled to length 1 in fp32 (fp64 stays); zero rows stay zero."""
    x = x if x.dtype == torch.float64 else x.float()
    return torch.nn.functional.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny)


def greedy_diverse(
    x: Tensor, k: int, first: int | None, rule: Literal["kcenter", "maxsum"] = "kcenter"
) -> Tensor:
    """Choose k of N tokens, each as far as possible from those already chosen.

    `kcenter` maximises the distance to the nearest chosen token, `maxsum` the sum of distances to
    all chosen ones. 2N²D FLOPs in one product up to N = 8192, above that 2NkD in k steps and, where
    the first token must be found, 2N²D in blocks.

    Args:
        x: (N, D) features.
        k: how many, 1 <= k <= N.
        first: index of the first token; None: the one farthest from its nearest neighbour.
        rule: which of the two.

    Returns:
        (k,) int64 in the order of choice.
    """
    n, x = x.shape[0], unit(x)
    gram = x @ x.T if n <= GRAM_LIMIT else None
    first = isolated(x, gram) if first is None else first
    score = x.new_zeros(n) if rule == "maxsum" else x.new_full((n,), torch.inf)
    # Chosen tokens are marked, not inferred: the distance of a token to itself is not exactly 0.
    score[first] = -torch.inf
    chosen = torch.empty(k, dtype=torch.int64, device=x.device)
    chosen[0] = first
    if gram is not None and on_gpu(x):
        from mmtok.pruning.fused import spread

        spread(gram, score, chosen, total=rule == "maxsum")
        return chosen
    for step in range(1, k):
        last = chosen[step - 1]
        distance = 1 - (gram[last] if gram is not None else x @ x[last])
        score = score + distance if rule == "maxsum" else torch.minimum(score, distance)
        chosen[step] = score.argmax()
        score[chosen[step]] = -torch.inf
    return chosen


def on_gpu(x: Tensor) -> bool:
    """Whether greedy loops over this tensor run as the kernels of `mmtok.pruning.fused`."""
    return x.is_cuda and find_spec("triton") is not None


def isolated(x: Tensor, gram: Tensor | None = None) -> int:
    """Index of the token whose nearest other token is farthest away.

    Args:
        x: (N, D) rows of length 1 or 0.
        gram: (N, N) their products, where they are at hand; else they are made in blocks.
    """
    n, block = len(x), 1024
    nearest = x.new_empty(n)
    for start in range(0, n, block):
        rows = (x[start : start + block] @ x.T) if gram is None else gram[start : start + block]
        own = torch.arange(start, start + len(rows), device=x.device)
        others = rows.scatter(1, own[:, None], -torch.inf)
        nearest[start : start + block] = others.amax(1)
    return int(nearest.argmin())


def greedy_flops(n: int, k: int, width: int, *, first_known: bool = True) -> int:
    """Floating point operations of `greedy_diverse`, 1 multiply-accumulate = 2."""
    if n <= GRAM_LIMIT:
        return 2 * n * n * width
    return 2 * n * width * (k - 1 + (0 if first_known else n))
