"""Exact rules reproduce the target by enumeration; rules with a known bias do not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from mmtok.decoding import lossy, rules
from mmtok.decoding.base import total_variation
from mmtok.decoding.rules import Level
from mmtok.decoding.verifiers.chain import Chain
from mmtok.decoding.verifiers.typical import Typical
from mmtok.errors import InputError

PAIRS = 200
EXACT = 1e-12
VISIBLE = 0.05  # a bias this large, somewhere among the pairs, counts as seen


def pairs() -> list[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(7)
    found = []
    for i in range(PAIRS):
        size = int(rng.integers(4, 9))
        rows = rng.dirichlet(np.full(size, 0.5), 2)
        if i % 4 == 0:
            rows[int(rng.integers(2)), rng.choice(size, 2, replace=False)] = 0
        if i % 10 == 1:
            rows[1] = rows[0]
        p, q = torch.tensor(rows / rows.sum(1, keepdims=True))
        found.append((p, q))
    return found


def draws(q: Tensor, k: int, kind: str) -> list[tuple[Tensor, float]]:
    """Every ordered tuple of siblings with its probability."""
    values, found = q.tolist(), []
    for order in itertools.product(range(len(values)), repeat=k):
        if kind == "det":
            best = tuple(q.argsort(descending=True, stable=True)[:k].tolist())
            chance = float(order == best)
        elif kind == "wor":
            chance, left = float(len(set(order)) == k), 1.0
            for token in order if chance else ():
                chance *= values[token] / left if left > 1e-9 else 0
                left -= values[token]
        else:
            chance = float(np.prod([values[t] for t in order]))
        if chance > 0:
            found.append((torch.tensor(order), chance))
    return found


def worst(rule, kind: str, k: int, stride: int = 1) -> float:
    error = 0.0
    for p, q in pairs()[::stride]:
        if kind == "wor" and int((q > 0).sum()) < k:
            continue
        law = torch.zeros_like(p)
        for siblings, chance in draws(q, k, kind):
            law += chance * rule(p, siblings, q).law(siblings)
        error = max(error, float((law - p).abs().sum() / 2))
    return error


def test_chain_reproduces_the_target():
    assert worst(rules.chain, "chain", 1) < EXACT


@pytest.mark.parametrize("k", [1, 2, 3])
def test_recursive_reproduces_the_target(k):
    assert worst(rules.recursive, "wor", k, stride=1 if k < 3 else 4) < EXACT


@pytest.mark.parametrize("k", [1, 2, 3])
def test_kseq_reproduces_the_target(k):
    assert worst(rules.kseq, "iid", k, stride=1 if k < 3 else 10) < EXACT


@pytest.mark.parametrize("kind", ["det", "iid", "wor"])
@pytest.mark.parametrize("k", [1, 2])
def test_deterministic_reproduces_the_target_for_every_kind(kind, k):
    assert worst(lambda p, s, q: rules.deterministic(p, s), kind, k) < EXACT


@pytest.mark.parametrize("k", [1, 4])
def test_greedy_emits_the_argmax(k):
    for p, q in pairs():
        siblings = q.argsort(descending=True)[:k]
        law = rules.greedy(p, siblings).law(siblings)
        assert law[p.argmax()] == 1
        assert law.sum() == 1


def ratio_on_argmax(p: Tensor, siblings: Tensor, q: Tensor) -> Level:
    return rules.chain(p, siblings, q)


def stale_q(p: Tensor, siblings: Tensor, q: Tensor) -> Level:
    """Recursive rejection that forgets to renormalise q behind a rejected sibling."""
    accept = []
    for token in siblings:
        accept.append(rules.ratio(p, q, token))
        p = rules.residual(p, q)
    return Level(torch.stack(accept), p)


def no_residual(p: Tensor, siblings: Tensor, q: Tensor) -> Level:
    return Level(rules.chain(p, siblings, q).accept, p)


def uniform_fallback(p: Tensor, siblings: Tensor, q: Tensor) -> Level:
    return Level(rules.chain(p, siblings, q).accept, torch.full_like(p, 1 / len(p)))


def kept_tail(p: Tensor, siblings: Tensor, q: Tensor) -> Level:
    return Level((p[siblings] > 0.5).to(p), p)


@pytest.mark.parametrize(
    ("rule", "kind", "k"),
    [
        (ratio_on_argmax, "det", 1),
        (stale_q, "wor", 2),
        (rules.kseq, "wor", 2),
        (no_residual, "chain", 1),
        (uniform_fallback, "chain", 1),
        (kept_tail, "chain", 1),
    ],
)
def test_a_wrong_rule_is_seen(rule, kind, k):
    assert worst(rule, kind, k) > VISIBLE


def test_draw_follows_the_weights_and_never_hits_a_zero():
    weights = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).double()
    us = [0.0, 0.25, 0.4999, 0.5, 0.75, 1 - 2**-53]
    assert [rules.draw(weights, u) for u in us] == [1, 1, 1, 3, 3, 3]


def test_a_draft_its_own_row_excludes_is_refused():
    p, q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).double()
    with pytest.raises(InputError, match="draft token 1 has probability 0"):
        rules.chain(p, torch.tensor([1]), q)
    with pytest.raises(InputError, match="got 2 siblings"):
        rules.chain(p, torch.tensor([0, 1]), q)


def test_lossy_rules_have_a_total_variation_and_become_exact_without_slack():
    near = lossy.neighbours(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), 7)
    for p, q in pairs()[:40]:
        first = next(int(t) for t in q.nonzero())
        token = torch.tensor([first])
        small = near[: len(p)].clamp(max=len(p) - 1)
        strict = lossy.lantern(p, token, q, small, 0.0)
        lent = lossy.borrowed(p, small, token[0], 0.0)
        assert float(p[lent].sum()) == 0
        torch.testing.assert_close(strict.accept, rules.chain(p, token, q).accept)
        alone = lossy.group(p, first, 0, 0.15, None)
        exact, grouped = rules.chain(p, token, q), lossy.grouped(p, q, alone)
        torch.testing.assert_close(grouped.accept, exact.accept)
        torch.testing.assert_close(grouped.rest, exact.rest)
        assert total_variation(Chain(), p, q) < EXACT
    assert max(total_variation(Typical(), p, q) for p, q in pairs()) > VISIBLE


def test_rollback_without_tolerance_is_greedy():
    for p, q in pairs():
        siblings = q.argsort(descending=True)[:2]
        strict, greedy = lossy.rollback(p, siblings, 0.0), rules.greedy(p, siblings)
        assert torch.equal(strict.law(siblings), greedy.law(siblings))
