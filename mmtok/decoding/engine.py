"""The loop: draft, score, verify, compact, until every row is finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mmtok.decoding import warp
from mmtok.decoding.base import (
    Drafter,
    StepResult,
    Verifier,
    check_pair,
    total_variation,
)
from mmtok.decoding.prompts import Inputs
from mmtok.decoding.stats import Stats
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree
from mmtok.errors import InputError


@dataclass
class Row:
    """One sequence under way.

    Attributes:
        ids: prompt, without padding, and what was generated.
        prompt: number of prompt tokens.
        processors: logits processors of this row.
        generator: its own source of random numbers, so batch mates cannot change it.
    """

    ids: list[int]
    prompt: int
    processors: warp.Processors
    generator: torch.Generator
    finished: bool = False

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))


@dataclass
class Engine:
    """One run of a target with a drafter and a verifier.

    Attributes:
        sample: False decodes greedily.
        max_new_tokens: per row.
        eos: ids that end a row.
        stop: further reason to end a row, asked after every token with (1, L) ids.
        measure_tv: measure the distance from the target at every node that was judged.

    Raises:
        InputError: the verifier would be wrong for the drafter's trees.
    """

    target: Target
    drafter: Drafter
    verifier: Verifier
    sample: bool
    max_new_tokens: int
    eos: frozenset[int] = frozenset()
    stop: Callable[[Tensor], bool] | None = None
    on_tokens: Callable[[list[int]], None] | None = None
    measure_tv: bool = False
    stats: Stats = field(init=False)

    def __post_init__(self) -> None:
        check_pair(self.drafter, self.verifier)
        self.stats = Stats(lossless=self.verifier.lossless)

    def run(self, inputs: Inputs, negative: Inputs | None, rows: list[Row], seeds: Any) -> None:
        """Generate for all rows, in place."""
        with self.stats.timed("prefill"):
            first = self.target.prefill(inputs, negative)
        self._vocabulary = first.shape[-1]
        with self.stats.timed("draft"):
            self.drafter.start(self.target, [r.ids for r in rows], seeds)
        for row, logits in zip(rows, first, strict=True):
            self._judge(row, DraftTree.root(row.ids[-1]), logits[None])
        while not all(r.finished for r in rows):
            self._step(rows)
        self.stats.target_forwards = self.target.forwards
        self.stats.drafter_forwards = getattr(self.drafter, "forwards", 0)

    def _step(self, rows: list[Row]) -> None:
        stats = self.stats
        active = [not r.finished for r in rows]
        with stats.timed("draft"):
            self.drafter.room = [0 if r.finished else self._left(r) - 1 for r in rows]
            trees = self.drafter.propose([r.ids for r in rows], active)
            trees = [self._fit(r, t) for r, t in zip(rows, trees, strict=True)]
        with stats.timed("score"):
            logits = self.target.score(trees, [r.finished for r in rows])
        results: list[StepResult | None] = []
        with stats.timed("verify"):
            for row, tree, z in zip(rows, trees, logits, strict=True):
                results.append(self._judge(row, tree, z) if not row.finished else None)
        with stats.timed("compact"):
            self.target.commit([[0, *r.verdict.path] if r else [] for r in results])
        for result in results:
            if result is not None:
                stats.add(result)
        with stats.timed("draft"):
            self.drafter.observe(results)

    def _fit(self, row: Row, tree: DraftTree) -> DraftTree:
        if row.finished:
            return DraftTree.root(row.ids[-1])
        if len(tree.tokens) > 1 and tree.kind != self.drafter.kind:
            raise InputError(
                f"{type(self.drafter).__name__} announced drafts of kind {self.drafter.kind!r} "
                f"and proposed {tree.kind!r}"
            )
        if int(tree.tokens[0]) != row.ids[-1]:
            raise InputError(
                f"the root of a draft is the row's last token, {row.ids[-1]}, "
                f"{type(self.drafter).__name__} put {int(tree.tokens[0])} there"
            )
        return tree.limited(self._left(row) - 1, self.eos, self._vocabulary)

    def _left(self, row: Row) -> int:
        return self.max_new_tokens - (len(row.ids) - row.prompt)

    def _judge(self, row: Row, tree: DraftTree, logits: Tensor) -> StepResult:
        logits = logits[: len(tree.tokens)]
        soft = self.sample or not self.verifier.lossless  # an exact greedy rule reads the argmax
        probs = cache(warp.rows(logits, tree, row.ids, row.processors, soft))
        verdict = self.verifier.verify(tree, probs, row.uniform)
        emitted = []
        for token in [*tree.tokens[verdict.path].tolist(), verdict.token]:
            row.ids.append(token)
            emitted.append(token)
            if self._ends(row, token):
                row.finished = True
                break
        if self.measure_tv:
            with self.stats.timed("measure"):
                for node, token in zip([0, *verdict.path], emitted, strict=False):
                    if tree.children(node):
                        self._measure(tree, node, probs(node), token)
        if self.on_tokens is not None:
            self.on_tokens(emitted)
        return StepResult(tree, verdict, logits, emitted, row.finished)

    def _ends(self, row: Row, token: int) -> bool:
        if token in self.eos or not self._left(row):
            return True
        return self.stop is not None and self.stop(torch.tensor([row.ids]))

    def _measure(self, tree: DraftTree, node: int, p: Tensor, emitted: int) -> None:
        """Distance of the law of the token behind a node from the target's, where it is known.

        What a greedy rule makes of chosen drafts is no matter of chance: what it emitted counts.
        """
        siblings = tree.tokens[tree.children(node)]
        if tree.q is None and self.verifier.argmax:
            self.stats.tv.append(float(emitted != int(p.argmax())))
        elif tree.q is None:
            law = self.verifier.level(p, siblings, None).law(siblings)
            self.stats.tv.append(float((law - p).abs().sum() / 2))
        elif len(siblings) == 1:
            self.stats.tv.append(total_variation(self.verifier, p, tree.q[node]))
