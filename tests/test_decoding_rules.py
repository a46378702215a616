"""Exact rules reproduce the target by enumeration; rules with a known bias do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmtok.decoding import lossy, rules
from mmtok.decoding.base import total_variation
from mmtok.decoding.rules import Level
from mmtok.decoding.verifiers.chain import Chain
from mmtok.decoding.verifiers.typical import Typical
from mmtok.errors import InputError
from tests.laws import rule_pairs, stale_row, worst

EXACT = 1e-12
VISIBLE = 0.05  # a bias this large, somewhere among the pairs, counts as seen
ALL = rule_pairs(200)
SOME = {1: ALL, 2: ALL, 3: ALL[::7], 4: ALL[::23]}  # the benchmark takes all for 3 as well


def test_the_pairs_are_as_hard_as_they_should_be():
    assert {len(p) for p, _ in ALL} == {4, 5, 6, 7, 8}
    assert sum(bool((p == 0).any() or (q == 0).any()) for p, q in ALL) >= 50
    assert sum(torch.equal(p, q) for p, q in ALL) == 20
    assert sum(bool((q[q > 0] < 1e-12).any()) for _, q in ALL) >= 10


def test_chain_reproduces_the_target():
    assert worst(rules.chain, "chain", 1, ALL) < EXACT


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_recursive_reproduces_the_target(k):
    assert worst(rules.recursive, "wor", k, SOME[k]) < EXACT


@pytest.mark.parametrize("k", [1, 2, 3])
def test_kseq_reproduces_the_target(k):
    assert worst(rules.kseq, "iid", k, SOME[k]) < EXACT


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_deterministic_reproduces_the_target_for_chosen_siblings(k):
    assert worst(lambda p, s, q: rules.deterministic(p, s), "det", k, ALL) < EXACT


@pytest.mark.parametrize("kind", ["iid", "wor"])
@pytest.mark.parametrize("k", [1, 2])
def test_deterministic_reproduces_the_target_for_drawn_siblings(kind, k):
    assert worst(lambda p, s, q: rules.deterministic(p, s), kind, k, ALL) < EXACT


def test_a_kept_or_redrawn_guess_has_the_law_of_its_new_row():
    for p, q in ALL:
        law = torch.zeros_like(p)
        for token in q.nonzero()[:, 0]:
            keep = rules.ratio(p, q, token)
            law[token] += q[token] * keep
            law += q[token] * (1 - keep) * rules.residual(p, q)
        assert float((law - p).abs().sum() / 2) < EXACT


@pytest.mark.parametrize("k", [1, 4])
def test_greedy_emits_the_argmax(k):
    for p, q in ALL:
        siblings = q.argsort(descending=True)[:k]
        law = rules.greedy(p, siblings).law(siblings)
        assert law[p.argmax()] == 1
        assert law.sum() == 1


def ratio_on_argmax(p: Tensor, siblings: Tensor, q: Tensor) -> Level:
    return rules.chain(p, siblings, q)


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
        (stale_row, "wor", 2),
        (rules.kseq, "wor", 2),
        (no_residual, "chain", 1),
        (uniform_fallback, "chain", 1),
        (kept_tail, "chain", 1),
    ],
)
def test_a_wrong_rule_is_seen(rule, kind, k):
    assert worst(rule, kind, k, ALL) > VISIBLE


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
    for p, q in ALL[:40]:
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
    assert max(total_variation(Typical(), p, q) for p, q in ALL) > VISIBLE


def test_rollback_without_tolerance_is_greedy():
    for p, q in ALL:
        siblings = q.argsort(descending=True)[:2]
        strict, greedy = lossy.rollback(p, siblings, 0.0), rules.greedy(p, siblings)
        assert torch.equal(strict.law(siblings), greedy.law(siblings))
