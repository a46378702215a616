"""Jacobi drafts: SJD (arXiv 2410.01699) and MC-SJD (2510.24211), without any draft model.

A window of guesses follows each row; every step scores all of them, and those that are not
accepted are drawn anew from what the target said about them under the old guesses. The
distribution each guess was drawn from is kept for its own verification, by the `chain` rule.
SJD's code is tyshiwo1/Accelerating-T2I-AR-with-SJD; none of MC-SJD was read. SJD's residual runs
through processors and warpers twice and its batches accept the minimum over rows; ours do neither.
The guesses come from guided logits at `temperature`, before the target's own warpers: this costs
acceptance where those cut much, `top_k` here mends it, and the output's law is the target's anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmtok.decoding.base import Drafter, StepResult, check_nodes
from mmtok.decoding.rules import draw, residual
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree, Kind
from mmtok.errors import InputError

_OWN_STREAM = 0x2545F4914F6CDD1D


@dataclass
class _Slots:
    """Guesses behind one row, with the rows (V,) they were drawn from."""

    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def uniform(self) -> float:
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))


@dataclass(kw_only=True)
class Jacobi(Drafter):
    """Guess the next tokens, and refine the guesses while the row moves on.

    Attributes:
        window: guesses per step.
        coupled: keep a guess as often as its new distribution allows (MC-SJD); False draws all
            anew (SJD).
        temperature: of the guesses.
        top_k: most likely tokens a guess is drawn from; 0 for all.
    """

    window: int = 16
    coupled: bool = True
    temperature: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.window < 1 or not self.temperature > 0 or self.top_k < 0:
            raise InputError("jacobi: window >= 1, temperature > 0 and top_k >= 0 are needed")
        check_nodes("jacobi", self.window)
        self._slots: list[_Slots] = []

    @property
    def kind(self) -> Kind:
        """One draw per node, from a distribution of an earlier step."""
        return "jacobi"

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Forget the guesses of the last batch."""
        self._vocabulary = target.model.config.get_text_config().vocab_size
        generators = (torch.Generator().manual_seed(s ^ _OWN_STREAM) for s in seeds)
        self._slots = [_Slots(g) for g in generators]

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """A chain of guesses per active row; new ones at the end are drawn uniformly."""
        trees = []
        for row, slots, room in zip(ids, self._slots, self.rooms(active), strict=True):
            even = torch.full((self._vocabulary,), 1 / self._vocabulary, dtype=torch.float64)
            while len(slots.tokens) < min(self.window, room):
                slots.tokens.append(draw(even, slots.uniform()))
                slots.rows.append(even)
            if not room:
                trees.append(DraftTree.root(row[-1]))
                continue
            tokens = torch.tensor([row[-1], *slots.tokens])
            q = torch.stack([*slots.rows, torch.zeros_like(even)])
            trees.append(DraftTree(tokens, torch.arange(len(tokens)) - 1, "jacobi", q))
        return trees

    def observe(self, results: list[StepResult | None]) -> None:
        """Drop what was accepted or rejected, draw the guesses behind it anew."""
        for slots, result in zip(self._slots, results, strict=True):
            if result is None or result.finished:
                continue
            used = len(result.verdict.path) + 1
            guesses = len(result.tree.tokens) - 1
            rows = self._rows(result.logits[used:guesses])
            slots.tokens, old = slots.tokens[used:guesses], slots.rows[used:guesses]
            slots.rows = rows
            for at, (p, q) in enumerate(zip(rows, old, strict=True)):
                slots.tokens[at] = self._refined(slots, slots.tokens[at], p, q)

    def _refined(self, slots: _Slots, token: int, p: Tensor, q: Tensor) -> int:
        if not self.coupled:
            return draw(p, slots.uniform())
        if slots.uniform() * float(q[token]) < float(p[token]):
            return token
        return draw(residual(p, q), slots.uniform())

    def _rows(self, logits: Tensor) -> list[Tensor]:
        scores = logits.double().cpu() / self.temperature
        if 0 < self.top_k < scores.shape[-1] and len(scores):
            least = scores.topk(self.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        return list(scores.softmax(-1))
