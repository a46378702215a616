"""Sampling through the whole engine follows the target's law: chi-square over all sequences.

Runs, seeds and the threshold were fixed before the first look: 2,048 runs with seeds 0 to 2,047,
|z| below 4 for exact pairs and above 10 for the canary.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mmtok.decoding import Drafter, Verifier, generate, rules
from mmtok.decoding.base import drawn_from
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.decoding.drafters.dyspec import DySpec
from mmtok.decoding.drafters.jacobi import Jacobi
from mmtok.decoding.drafters.rsdc import RSDC
from mmtok.decoding.drafters.rsds import RSDS
from mmtok.decoding.drafters.spectr import SpecTr
from tests.decoders import llama, near

VOCABULARY, LENGTH, RUNS, BATCH = 4, 3, 2048, 256
PROMPT = [1, 3, 0, 2, 1, 3]
SCALE, TEMPERATURE, TOP_K = 2.0, 0.7, 3


@cache
@torch.no_grad()
def expected() -> Tensor:
    """(V^L,) probability of every sequence, by full forwards without cache."""
    model = llama(vocabulary=VOCABULARY)
    tails = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    full = torch.cat([torch.tensor(PROMPT).expand(len(tails), -1), tails], 1)
    start = len(PROMPT) - 1
    cond, uncond = model(full).logits[:, start:-1], model(full[:, start:]).logits[:, :-1]
    z = (uncond + SCALE * (cond - uncond)).double() / TEMPERATURE
    z = z.masked_fill(z < z.topk(TOP_K).values[..., -1:], -torch.inf)
    return z.softmax(-1).gather(2, tails[..., None]).prod(1)[:, 0]


def z_score(drafter: Drafter | str, verifier: Verifier | str | None) -> float:
    model = llama(vocabulary=VOCABULARY)
    prompt = torch.tensor(PROMPT).expand(BATCH, -1)
    counts = torch.zeros(VOCABULARY**LENGTH)
    weights = torch.tensor([VOCABULARY**i for i in reversed(range(LENGTH))])
    for start in range(0, RUNS, BATCH):
        got = generate(
            model,
            {"input_ids": prompt},
            drafter=drafter,
            verifier=verifier,
            guidance_scale=SCALE,
            do_sample=True,
            max_new_tokens=LENGTH,
            seed=start,
            temperature=TEMPERATURE,
            top_k=TOP_K,
        )
        cells = (got.sequences[:, len(PROMPT) :] * weights).sum(1)
        counts += torch.bincount(cells, minlength=len(counts))
    wanted = expected() * RUNS
    rare = wanted < 5  # one common cell
    wanted = torch.cat([wanted[~rare], wanted[rare].sum()[None]])
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    chi2 = ((counts - wanted) ** 2 / wanted.clamp(min=1e-9)).sum()
    dof = len(wanted) - 1
    return float((chi2 - dof) / (2 * dof) ** 0.5)


def draft_model() -> Any:
    return near(vocabulary=VOCABULARY, noise=0.15)


PAIRS = {
    "recycling": lambda: ("recycling(successors=3, children=(3, 2, 1))", None),
    "draftmodel": lambda: (DraftModel(model=draft_model()), "chain"),
    "spectr": lambda: (SpecTr(model=draft_model()), "kseq"),
    "rsdc": lambda: (RSDC(model=draft_model()), "recursive"),
    "rsds": lambda: (RSDS(model=draft_model()), "recursive"),
    "dyspec": lambda: (DySpec(model=draft_model()), "recursive"),
    "sjd": lambda: (Jacobi(window=3, coupled=False), "chain"),
    "mc-sjd": lambda: (Jacobi(window=3), "chain"),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_guided_and_warped_sampling_is_exact(pair: str) -> None:
    assert abs(z_score(*PAIRS[pair]())) < 4


class NoResidual(Verifier):
    """Draws from p behind a rejected token: a known bias."""

    accepts: ClassVar[frozenset[Any]] = frozenset({"chain"})

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        return rules.Level(rules.chain(p, siblings, drawn_from(q)).accept, p)


def test_the_canary_is_caught() -> None:
    assert z_score(DraftModel(model=draft_model()), NoResidual()) > 10
