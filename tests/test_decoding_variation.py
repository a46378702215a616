"""The law that a lossy rule gives at once is that of its drafts, judged one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok.decoding.base import Verifier, total_variation
from mmtok.decoding.lossy import neighbours
from mmtok.decoding.verifiers.chain import Chain
from mmtok.decoding.verifiers.gsd import GSD
from mmtok.decoding.verifiers.lantern import Lantern
from mmtok.decoding.verifiers.typical import Typical
from tests.laws import rule_pairs

CODES, FIRST, TOKENS = 20, 3, 26  # words before the codes and behind them
_GENERATOR = torch.Generator().manual_seed(0)
BOOK = torch.randn(CODES, 2, generator=_GENERATOR, dtype=torch.float64)
NEAR = neighbours(BOOK, 6)
RULES: dict[str, Verifier] = {
    **{f"lantern {d}": Lantern(near=NEAR, delta=d, first=FIRST) for d in (0.0, 0.1, 0.4, 2, 5)},
    "published": Lantern(near=NEAR, delta=0.4, first=FIRST, published=True),
    "one column": Lantern(near=NEAR[:, :1], delta=0.4, first=FIRST, published=True),
    "no neighbours": Lantern(near=NEAR[:, :0], first=FIRST),
    "gsd": GSD(codebook=BOOK, first=FIRST),
    "gsd, wide": GSD(codebook=BOOK, first=FIRST, ranks=40, gap=1.0, distance=3.0),
    "gsd without a codebook": GSD(ranks=3),
    "typical": Typical(),
    "typical, bold": Typical(eps=0.01),
}


def pairs(count: int = 40) -> list[tuple[Tensor, Tensor]]:
    """Rows from flat to peaked, some with tokens left out, some equal, some far apart."""
    made = []
    for at in range(count):
        z = torch.randn(2, TOKENS, generator=_GENERATOR, dtype=torch.float64) * (0.5 + at % 7)
        if at % 3 == 0:
            z = z.masked_fill(torch.rand(z.shape, generator=_GENERATOR) < 0.5, -torch.inf)
            z[:, at % TOKENS] = 0  # never all of them
        p, q = z.softmax(-1)
        made.append((p, p if at % 10 == 9 else q))
    return made


PAIRS = pairs()


def enumerated(rule: Verifier, p: Tensor, q: Tensor) -> list[float]:
    """The definition, in Python's own numbers."""
    law = [0.0] * len(p)
    for draft, chance in enumerate(q.tolist()):
        if chance == 0:
            continue
        level = rule.level(p, torch.tensor([draft]), q)
        accept = float(level.accept[0])
        law[draft] += chance * accept
        for token, rest in enumerate(level.rest.tolist()):
            law[token] += chance * (1 - accept) * rest
    return law


@pytest.mark.parametrize("name", RULES)
def test_all_drafts_at_once_are_the_drafts_one_by_one(name: str) -> None:
    rule, far = RULES[name], 0.0
    assert type(rule).law is not Verifier.law
    for p, q in PAIRS:
        law = enumerated(rule, p, q)
        assert rule.law(p, q).tolist() == pytest.approx(law, abs=1e-13)
        distance = sum(abs(x - y) for x, y in zip(law, p.tolist(), strict=True)) / 2
        assert total_variation(rule, p, q) == pytest.approx(distance, abs=1e-13)
        far = max(far, distance)
    assert far < 1e-12 if name in ("lantern 0.0", "no neighbours", "one column") else far > 0.01


@pytest.mark.parametrize("rule", [GSD(), Typical(), Chain()])
def test_rows_at_the_edge_of_a_double(rule: Any) -> None:
    for p, q in rule_pairs(200):
        assert rule.law(p, q).tolist() == pytest.approx(enumerated(rule, p, q), abs=1e-12)
