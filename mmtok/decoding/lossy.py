"""Lossy acceptance rules: more drafts survive, and the output is no longer the target's.

Same form as `mmtok.decoding.rules`. None of them bounds the error of the output by its own
parameters: measure it with `total_variation`.

LANTERN, arXiv 2410.03355, and LANTERN++, 2502.06352 (code: jadohu/LANTERN): a draft token borrows
the probability of its neighbours in the codebook. On a reject we clear only the neighbours whose
probability was borrowed, where the code clears one more than the whole list (`published` does as
the code), and fall back to the node's own p where the code falls back to the uniform distribution.
GSD, arXiv 2508.07747 (code: junhyukso/GSD): p and q summed over tokens of similar rank. Our window
is symmetric and clamped at both edges; theirs is empty near the low edge, one short above.
Typical acceptance: Medusa, arXiv 2401.10774. Rollback: BiLD, arXiv 2302.07863 (code:
kssteven418/BigLittleDecoder); theirs stops looking behind a doubtful token it kept, ours goes on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmtok.decoding.rules import EPSILON, Level, one_hot, residual, without


def neighbours(codebook: Tensor, k: int) -> Tensor:
    """(V, k) ids of the nearest codes by L2 distance, nearest first, never the code itself.

    Args:
        codebook: (V, D).
        k: neighbours per code, at most V - 1. Ties go to the lower id.
    """
    rows = []
    for start in range(0, len(codebook), 1024):  # (1024, V) at a time, not (V, V)
        block = codebook[start : start + 1024]
        distance = torch.cdist(block, codebook, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(start, start + len(block))
        distance[own - start, own] = math.inf
        rows.append(distance.argsort(dim=1, stable=True)[:, :k])
    return torch.cat(rows)


def borrowed(p: Tensor, near: Tensor, token: Tensor, delta: float, first: int = 0) -> Tensor:
    """The neighbours of `token` whose joint probability stays within the threshold, nearest first.

    Args:
        p: (V,) target distribution.
        near: (C, K) code ids; code c is token `first` + c.
        token: what is tested; no code, no neighbours.
        delta: the threshold up to 1; above, it is (delta - 1) p(token).
        first: token id of code 0.
    """
    code = int(token) - first
    if not 0 <= code < len(near):
        return token.new_zeros(0)
    threshold = delta if delta <= 1 else (delta - 1) * float(p[token])
    lent = near[code] + first
    return lent[: int((p[lent].cumsum(0) <= threshold).sum())]


def lantern(
    p: Tensor,
    siblings: Tensor,
    q: Tensor | None,
    near: Tensor,
    delta: float,
    first: int = 0,
    published: bool = False,
) -> Level:
    """LANTERN++ where the siblings were drawn from q without replacement; LANTERN where q is None.

    Args:
        p: (V,) target distribution.
        siblings: (k,) draft tokens in draw order.
        q: (V,) draft distribution, or None for siblings chosen deterministically.
        near: (C, K) from `neighbours`.
        delta: see `borrowed`.
        first: see `borrowed`.
        published: on a reject clear the whole list of neighbours, as the authors' code does. It
            clears one more than it sums, so give `near` one column more than is summed.
    """
    whole, accept = p, []
    summed = near[:, :-1] if published else near
    for token in siblings:
        lent = borrowed(p, summed, token, delta, first)
        chance = p[token] + p[lent].sum()
        if published and len(lent):
            lent = near[int(token) - first] + first
        accept.append((chance if q is None else chance / q[token]).clamp(max=1))
        if q is None:
            left = p.clone()
            left[token] = 0
            left[lent] = 0
            mass = left.sum()
            p = left / mass if mass > EPSILON else whole
            continue
        held = q.clone()
        held[lent] = 0
        p = residual(p, held)
        q = without(q, token)
    return Level(torch.stack(accept), p)


def lantern_law(
    p: Tensor,
    q: Tensor,
    near: Tensor,
    delta: float,
    first: int = 0,
    published: bool = False,
) -> Tensor:
    """Distribution (V,) of the next token by `lantern`, one draft drawn from q, in O(V + C K).

    A reject leaves (p - q)+, and all of p at the codes cleared. Arguments as in `lantern`.
    """
    codes, ids = slice(first, first + len(near)), near + first
    summed = p[ids[:, :-1] if published else ids]
    threshold = delta if delta <= 1 else (delta - 1) * p[codes, None]
    lent = summed.cumsum(1) <= threshold
    raised = p.clone()
    raised[codes] += (summed * lent).sum(1)
    cleared = lent.any(1, keepdim=True).expand_as(ids) if published else lent
    back = torch.minimum(p, q)[ids] * cleared
    left = (p - q).clamp(min=0)
    mass = left.sum().repeat(len(p))
    mass[codes] += back.sum(1)
    share = (q - raised).clamp(min=0) / mass.clamp(min=EPSILON)  # what is rejected is never more
    law = torch.minimum(q, raised) + share.sum() * left
    return law.index_add(0, ids.flatten(), (share[codes, None] * back).flatten())


def lantern_greedy(
    p: Tensor, siblings: Tensor, near: Tensor, delta: float, first: int = 0
) -> Level:
    """LANTERN for greedy decoding: accept what is the argmax once it has borrowed."""
    accept = []
    for token in siblings:
        raised = p.clone()
        raised[token] += p[borrowed(p, near, token, delta, first)].sum()
        accept.append((raised.argmax() == token).to(p))
    return Level(torch.stack(accept), one_hot(p))


def group(p: Tensor, token: int, ranks: int, gap: float, far: Tensor | None) -> Tensor:
    """(V,) bool: tokens within `ranks` of `token`, close in probability, and not `far` from it.

    Args:
        p: (V,) target distribution, whose order gives the ranks (ties by id).
        token: the draft token.
        ranks: half width of the window.
        gap: largest difference of probability.
        far: (V,) bool, tokens too distant in the codebook; None for no such gate.
    """
    order = p.argsort(stable=True)
    rank = int((order == token).nonzero())
    window = torch.zeros_like(p, dtype=torch.bool)
    window[order[max(0, rank - ranks) : rank + ranks + 1]] = True
    window &= (p - p[token]).abs() < gap
    return window if far is None else window & ~far


def group_shares(
    p: Tensor, q: Tensor, ranks: int, gap: float, codebook: Tensor | None, distance: float
) -> Tensor:
    """(V,) what `grouped` accepts each token with, by the group of each; 0 where q is.

    Args:
        p: (V,) target distribution.
        q: (V,) draft distribution.
        ranks: see `group`.
        gap: see `group`.
        codebook: (V, D), a row per token, NaN for what is no code and gets the exact rule; None:
            no token is far.
        distance: squared, from which on a token is far.
    """
    order = p.argsort(stable=True)
    place = torch.arange(len(p))
    above, below = torch.zeros_like(p), torch.zeros_like(p)
    for shift in range(-ranks, ranks + 1):
        other = order[(place + shift).clamp(0, len(p) - 1)]
        kept = (place + shift >= 0) & (place + shift < len(p))
        kept &= (p[other] - p[order]).abs() < gap
        if codebook is not None:
            kept &= (codebook[other] - codebook[order]).square().sum(1) < distance
        above[order] += p[other] * kept
        below[order] += q[other] * kept
    share = torch.where(below > 0, above / below, p / q)
    return torch.where(q > 0, share, 0).clamp(max=1)


def grouped(p: Tensor, q: Tensor, kept: Tensor) -> Level:
    """GSD: the ratio of p and q over the group (V,) bool of the one sibling."""
    share = p[kept].sum() / q[kept].sum()
    return Level(share.clamp(max=1)[None], residual(p, q))


def typical(p: Tensor, siblings: Tensor, eps: float, alpha: float) -> Level:
    """Accept what is above min(eps, alpha exp(-H)); otherwise draw from p."""
    return Level((p[siblings] > typical_threshold(p, eps, alpha)).to(p), p)


def typical_threshold(p: Tensor, eps: float, alpha: float) -> Tensor:
    """min(eps, alpha exp(-H(p))) with H in nats over p + 1e-5 inside the logarithm."""
    entropy = -(p * (p + 1e-5).log()).sum(-1)
    return (alpha * (-entropy).exp()).clamp(max=eps)


def rollback(p: Tensor, siblings: Tensor, tau: float) -> Level:
    """BiLD: accept while -log p(x) <= tau nats or x is the argmax; else emit the argmax."""
    best = one_hot(p)
    fits = -p[siblings].log() <= tau
    return Level((fits | (best[siblings] > 0)).to(p), best)
