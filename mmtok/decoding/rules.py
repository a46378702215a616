"""Exact acceptance rules as pure functions of probability rows.

A rule looks at one node: `p` (V,) is the target's distribution there, `siblings` (k,) the draft
tokens in the order they are tried, `q` (V,) what the drafter drew them from. It answers with the
chance of accepting each sibling once those before it were rejected, and with the distribution of
the token emitted when all are. Nothing random happens here, so the law of a rule can be
enumerated.

Speculative sampling: arXiv 2211.17192, 2302.01318. Recursive rejection without replacement: RSD,
arXiv 2402.14160. K-SEQ: SpecTr, arXiv 2310.15141. Deterministic drafts: the one-hot case.
All rows are float64; sums below `EPSILON` count as empty.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmtok.errors import InputError

EPSILON = 1e-12


class Level(NamedTuple):
    """What a rule says about one node.

    Attributes:
        accept: (k,) chance of accepting each sibling, given that those before it were rejected.
        rest: (V,) distribution of the emitted token when none is accepted.
    """

    accept: Tensor
    rest: Tensor

    def law(self, siblings: Tensor) -> Tensor:
        """Distribution (V,) of the next token, given these siblings."""
        alive = torch.cat([self.accept.new_ones(1), (1 - self.accept).cumprod(0)])
        law = self.rest * alive[-1]
        return law.index_add(0, siblings, self.accept * alive[:-1])


def one_draw(q: Tensor, accept: Tensor, rest: Tensor) -> Tensor:
    """Law (V,) behind one draft from q (V,), each accepted with `accept` (V,), else one `rest`."""
    kept = q * accept
    return kept + (q.sum() - kept.sum()) * rest


def one_hot(p: Tensor) -> Tensor:
    """All on the most likely token, the lowest id of several."""
    best = torch.zeros_like(p)
    best[p.argmax()] = 1
    return best


def residual(p: Tensor, q: Tensor) -> Tensor:
    """N((p - q)+), (V,); p itself where the two agree, never the uniform distribution."""
    left = (p - q).clamp(min=0)
    mass = left.sum()
    return left / mass if mass > EPSILON else p


def ratio(p: Tensor, q: Tensor, token: Tensor) -> Tensor:
    """min(1, p(x) / q(x)).

    Raises:
        InputError: q(x) is zero, so x was not drawn from q.
    """
    if q[token] <= 0:
        raise InputError(f"draft token {int(token)} has probability 0 under its own draft row")
    return (p[token] / q[token]).clamp(max=1)


def greedy(p: Tensor, siblings: Tensor) -> Level:
    """Follow the most likely token; ties go to the lowest id."""
    best = one_hot(p)
    return Level(best[siblings], best)


def deterministic(p: Tensor, siblings: Tensor) -> Level:
    """Siblings chosen without a die: accept each with its own probability.

    Right for siblings of any origin, since it is the same as drawing from p and then looking
    whether a sibling was hit. A sibling that comes twice is tried once.
    """
    rest, left, accept = p.clone(), p.sum(), []
    for token in siblings:
        accept.append((rest[token] / left).clamp(max=1) if left > EPSILON else left * 0)
        rest[token] = 0
        left = rest.sum()
    chances = torch.stack(accept) if accept else p.new_zeros(0)
    return Level(chances, rest / left if left > EPSILON else p)


def chain(p: Tensor, siblings: Tensor, q: Tensor) -> Level:
    """Speculative sampling: one sibling, drawn from q.

    Raises:
        InputError: more than one sibling.
    """
    if len(siblings) != 1:
        raise InputError(f"the chain rule judges one draw per node, got {len(siblings)} siblings")
    return Level(ratio(p, q, siblings[0])[None], residual(p, q))


def recursive(p: Tensor, siblings: Tensor, q: Tensor) -> Level:
    """Recursive rejection: siblings drawn from q without replacement, in the order of the draws."""
    accept = []
    for token in siblings:
        accept.append(ratio(p, q, token))
        p = residual(p, q)
        q = without(q, token)
    return Level(torch.stack(accept), p)


def without(q: Tensor, token: Tensor) -> Tensor:
    """N(q with q(x) = 0), however little that leaves: a peaked q must not stay unnormalised."""
    left = q.clone()
    left[token] = 0
    mass = left.sum()
    return left / mass if mass > 0 else left


def kseq(p: Tensor, siblings: Tensor, q: Tensor) -> Level:
    """K-SEQ: k independent draws from q, equal ones allowed."""
    k = len(siblings)
    rho, beta = kseq_rho(p, q, k)
    accept = torch.stack([ratio(p / rho, q, token) for token in siblings])
    per_draw = (1 - (1 - beta) ** k) / beta if beta > EPSILON else k
    left = (p - torch.minimum(q, p / rho) * per_draw).clamp(min=0)
    mass = left.sum()
    return Level(accept, left / mass if mass > EPSILON else p)


def kseq_rho(p: Tensor, q: Tensor, k: int) -> tuple[float, float]:
    """The root rho of 1 - (1 - beta)^k = rho beta in [1, k], and beta there."""
    low, high = 1.0, float(k)

    def overlap(rho: float) -> float:
        return min(1.0, float(torch.minimum(q, p / rho).sum()))

    for _ in range(60 if k > 1 else 0):
        rho = (low + high) / 2
        beta = overlap(rho)
        if 1 - (1 - beta) ** k > rho * beta:
            low = rho
        else:
            high = rho
    return (low + high) / 2, overlap((low + high) / 2)


def draw(weights: Tensor, u: float) -> int:
    """The first index whose cumulated weight exceeds u times the total, u in [0, 1)."""
    total = weights.cumsum(0)
    at = int(torch.searchsorted(total, u * total[-1], right=True))
    return min(at, int(weights.nonzero()[-1]))
