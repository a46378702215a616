"""The law of whole sequences, sampled through the engine, against the one that forwards give.

Guidance, temperature and top-k are on; drafts run into the maximum length and into ends of
sequence. Seeds are `first` to first + runs - 1, one per row. Fixed before the first look: a pair
is exact if the standardised chi-square stays below 4, a canary is caught above 10. After it the
draft model was made to disagree more, since two canaries were too weak to be seen, and those made
stronger.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mmtok.decoding import Drafter, DraftTree, Verifier, generate, rules
from mmtok.decoding.base import drawn_from
from mmtok.decoding.drafters.aded import ADED
from mmtok.decoding.drafters.bild import BiLD
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.decoding.drafters.dynamicexit import DynamicExit
from mmtok.decoding.drafters.dyspec import DySpec
from mmtok.decoding.drafters.earlyexit import EarlyExit
from mmtok.decoding.drafters.jacobi import Jacobi
from mmtok.decoding.drafters.rasd import RASD
from mmtok.decoding.drafters.rsdc import RSDC
from mmtok.decoding.drafters.rsds import RSDS
from mmtok.decoding.drafters.s2d import S2D
from mmtok.decoding.drafters.spectr import SpecTr
from mmtok.decoding.tree import Kind
from tests.decoders import llama, near

VOCABULARY, LENGTH, BATCH, EOS = 5, 4, 1024, 4
PROMPT = [1, 3, 0, 2, 1, 3]
SCALE, TEMPERATURE, TOP_K = 2.0, 4.0, 4  # flat enough for a hundred cells
CORPUS = [torch.randint(4, (300,), generator=torch.Generator().manual_seed(0)).tolist()]
EXACT, CAUGHT = 4.0, 10.0


class Fit(NamedTuple):
    """Chi-square of a run: standardised, and its p-value."""

    z: float
    p: float
    cells: int
    accepted: float


@cache
@torch.no_grad()
def expected() -> Tensor:
    """(V^L,) probability of every sequence, by full forwards; an end is followed by itself."""
    model = llama(vocabulary=VOCABULARY)
    tails = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
    full = torch.cat([torch.tensor(PROMPT).expand(len(tails), -1), tails], 1)
    start = len(PROMPT) - 1
    cond, uncond = model(full).logits[:, start:-1], model(full[:, start:]).logits[:, :-1]
    z = (uncond + SCALE * (cond - uncond)).double() / TEMPERATURE
    z = z.masked_fill(z < z.topk(TOP_K).values[..., -1:], -torch.inf)
    chance = z.softmax(-1).gather(2, tails[..., None])[..., 0]
    ended = (tails == EOS).long().cumsum(1) - (tails == EOS).long() > 0
    return torch.where(ended, (tails == EOS).to(chance), chance).prod(1)


def fit(drafter: Drafter | str, verifier: Verifier | str | None, runs: int, first: int = 0) -> Fit:
    """Sample `runs` sequences, by seeds from `first` on, and compare their counts with the law."""
    prompt = torch.tensor(PROMPT).expand(BATCH, -1)
    counts = torch.zeros(VOCABULARY**LENGTH).double()
    weights = torch.tensor([VOCABULARY**i for i in reversed(range(LENGTH))])
    rates = []
    for start in range(0, runs, BATCH):
        got = generate(
            llama(vocabulary=VOCABULARY),
            {"input_ids": prompt[: runs - start]},
            drafter=drafter,
            verifier=verifier,
            guidance_scale=SCALE,
            do_sample=True,
            max_new_tokens=LENGTH,
            eos_token_id=EOS,
            pad_token_id=EOS,
            seed=first + start,
            temperature=TEMPERATURE,
            top_k=TOP_K,
        )
        tails = got.sequences[:, len(PROMPT) :]
        tails = torch.nn.functional.pad(tails, (0, LENGTH - tails.shape[1]), value=EOS)
        counts += torch.bincount((tails * weights).sum(1), minlength=len(counts))
        rates.append(got.stats.accepted_per_step)
    wanted = expected() * runs
    rare = wanted < 5  # one common cell
    wanted = torch.cat([wanted[~rare], wanted[rare].sum()[None]])
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    chi2 = ((counts - wanted) ** 2 / wanted.clamp(min=1e-9)).sum()
    dof = len(wanted) - 1
    p = torch.special.gammaincc(torch.tensor(dof / 2).double(), chi2 / 2)
    z = float((chi2 - dof) / (2 * dof) ** 0.5)
    return Fit(z, float(p), len(wanted), sum(rates) / len(rates))


def draft_model() -> Any:
    return near(vocabulary=VOCABULARY, noise=0.6)


Pair = Callable[[], tuple[Drafter | str, Verifier | str | None]]
PAIRS: dict[str, Pair] = {
    "lookup, deterministic": lambda: ("lookup(ngram=1)", "deterministic"),
    "recycling, deterministic": lambda: (
        "recycling(successors=3, children=(3, 2, 1))",
        "deterministic",
    ),
    "draftmodel, chain": lambda: (DraftModel(model=draft_model(), temperature=2.0), "chain"),
    "draftmodel, kseq": lambda: (DraftModel(model=draft_model(), temperature=2.0), "kseq"),
    "spectr, kseq": lambda: (SpecTr(model=draft_model(), temperature=2.0), "kseq"),
    "spectr, deterministic": lambda: (
        SpecTr(model=draft_model(), temperature=2.0),
        "deterministic",
    ),
    "rsdc, recursive": lambda: (RSDC(model=draft_model(), temperature=2.0), "recursive"),
    "rsds, recursive": lambda: (RSDS(model=draft_model(), temperature=2.0), "recursive"),
    "dyspec, recursive": lambda: (DySpec(model=draft_model(), temperature=2.0), "recursive"),
    "dyspec, deterministic": lambda: (
        DySpec(model=draft_model(), temperature=2.0),
        "deterministic",
    ),
    "jacobi (SJD), chain": lambda: (Jacobi(window=3, coupled=False, temperature=2.0), "chain"),
    "jacobi (MC-SJD), chain": lambda: (Jacobi(window=3, temperature=2.0), "chain"),
    "aded, deterministic": lambda: (
        ADED(iterations=20, gain=0.5, corpus=CORPUS),
        "deterministic",
    ),
    "rasd, deterministic": lambda: (
        RASD(base="recycling(successors=2, children=(2,))", corpus=CORPUS),
        "deterministic",
    ),
    "bild, deterministic": lambda: (
        BiLD(model=draft_model(), fallback=0.3),
        "deterministic",
    ),
    "s2d, deterministic": lambda: (S2D(model=draft_model(), exits=(1,)), "deterministic"),
    "earlyexit, chain": lambda: (EarlyExit(exit=1, temperature=2.0), "chain"),
    "dynamicexit, deterministic": lambda: (
        DynamicExit(layers=(1,), prior=0.9),
        "deterministic",
    ),
}


class NoResidual(Verifier):
    """Draws from p behind a rejected token."""

    accepts: ClassVar[frozenset[Kind]] = frozenset[Kind]({"chain"})

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        return rules.Level(rules.chain(p, siblings, drawn_from(q)).accept, p)


class UniformFallback(NoResidual):
    """Draws evenly behind a rejected token."""

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        even = torch.full_like(p, 1 / len(p))
        return rules.Level(rules.chain(p, siblings, drawn_from(q)).accept, even)


class StaleRow(Verifier):
    """Does not renormalise q behind a rejected sibling."""

    accepts: ClassVar[frozenset[Kind]] = frozenset[Kind]({"wor"})

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        return stale_row(p, siblings, drawn_from(q))


def stale_row(p: Tensor, siblings: Tensor, q: Tensor) -> rules.Level:
    accept = []
    for token in siblings:
        accept.append(rules.ratio(p, q, token))
        p = rules.residual(p, q)
    return rules.Level(torch.stack(accept), p)


class TriedTwice(Verifier):
    """Gives every draft a second chance."""

    accepts: ClassVar[frozenset[Kind]] = frozenset[Kind]({"det"})

    def level(self, p: Tensor, siblings: Tensor, q: Tensor | None) -> rules.Level:
        once = rules.deterministic(p, siblings)
        return rules.Level(1 - (1 - once.accept) ** 2, once.rest)


class ArgmaxAsDraw(DraftModel):
    """Takes the most likely token and says it was drawn."""

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        trees = super().propose(ids, active)
        for tree in trees:
            for node in range(1, len(tree.tokens)):
                if tree.q is not None:
                    tree.tokens[node] = tree.q[node - 1].argmax()
        return trees


class KeptGuesses(Jacobi):
    """Keeps every guess, and says it was drawn from what is now known."""

    def _refined(self, slots: Any, token: int, p: Tensor, q: Tensor) -> int:
        return token


CANARIES: dict[str, Pair] = {
    "residual dropped": lambda: (DraftModel(model=draft_model(), temperature=2.0), NoResidual()),
    "uniform fallback": lambda: (
        DraftModel(model=draft_model(), temperature=2.0),
        UniformFallback(),
    ),
    "argmax verified as a draw": lambda: (
        ArgmaxAsDraw(model=draft_model(), temperature=2.0),
        "chain",
    ),
    "q not renormalised": lambda: (RSDC(model=draft_model(), temperature=2.0), StaleRow()),
    "drafts tried twice": lambda: (
        DraftModel(model=draft_model(), temperature=0.0),
        TriedTwice(),
    ),
    "guesses kept as if redrawn": lambda: (
        KeptGuesses(window=3, coupled=False, temperature=2.0),
        "chain",
    ),
}


def rule_pairs(count: int = 200, least: int = 1) -> list[tuple[Tensor, Tensor]]:
    """(p, q) of 4 to 8 tokens: with zeros, with p = q, and with a draft far too sure of itself.

    `count` of them whose q gives at least `least` tokens, so many may be drawn from it.
    """
    import numpy as np

    rng = np.random.default_rng(7)
    found = []
    for i in itertools.count():
        if len(found) == count:
            return found
        size = int(rng.integers(4, 9))
        rows = rng.dirichlet(np.full(size, 0.5), 2)
        if i % 4 == 0:
            rows[int(rng.integers(2)), rng.choice(size, 2, replace=False)] = 0
        if i % 10 == 1:
            rows[1] = rows[0]
        if i % 10 == 3:
            rows[1] = rows[1] ** 10
        p, q = torch.tensor(rows / rows.sum(1, keepdims=True))
        if int((q > 0).sum()) >= least:
            found.append((p, q))


def draws(q: Tensor, k: int, kind: str) -> list[tuple[Tensor, float]]:
    """Every ordered tuple of siblings with its probability."""
    values, found = q.tolist(), []
    if kind == "det":
        return [(q.argsort(descending=True, stable=True)[:k], 1.0)]
    for order in itertools.product(range(len(values)), repeat=k):
        chance, left = 1.0, list(values)
        for token in order:
            total = sum(left)
            chance *= left[token] / total if total > 0 else 0
            if kind == "wor":
                left[token] = 0.0
        if chance > 0:
            found.append((torch.tensor(order), chance))
    return found


Rule = Callable[[Tensor, Tensor, Tensor], rules.Level]


def worst(rule: Rule, kind: str, k: int, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Largest total variation of the rule's law from p over the pairs, by enumeration."""
    error = 0.0
    for p, q in pairs:
        if kind == "wor" and int((q > 0).sum()) < k:
            continue
        law = torch.zeros_like(p)
        for siblings, chance in draws(q, k, kind):
            law += chance * rule(p, siblings, q).law(siblings)
        error = max(error, float((law - p).abs().sum() / 2))
    return error
