"""What a run did: acceptance by depth, forwards, time by phase, and whether it was exact."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mmtok.decoding.base import StepResult


@dataclass
class Stats:
    """Counts over all rows of a run. Accepted tokens never include the one emitted behind them.

    Attributes:
        lossless: the output has the target's distribution.
        target_forwards: calls of the target, the prefill included.
        drafter_forwards: calls of the drafter's model, if it has one.
        row_steps: steps, counted once per unfinished row.
        tried: tried[d], how often a draft at depth d + 1 was judged.
        hits: hits[d], how often one of them was accepted.
        drafted: draft nodes given to the target.
        ms: wall time by phase: prefill, draft, score, verify, compact; and measure, what the
            measured distances took of verify.
        tv: per judged token, distance of its law from the target's, given the tokens before it.
    """

    lossless: bool
    target_forwards: int = 0
    drafter_forwards: int = 0
    row_steps: int = 0
    drafted: int = 0
    tried: list[int] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)
    ms: dict[str, float] = field(default_factory=dict)
    tv: list[float] = field(default_factory=list)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of the block to `phase`."""
        begin = time.perf_counter()
        yield
        self.ms[phase] = self.ms.get(phase, 0.0) + (time.perf_counter() - begin) * 1e3

    def add(self, result: StepResult) -> None:
        """Count one row's step."""
        tree, path = result.tree, result.verdict.path[: len(result.emitted)]  # a stop cuts it
        self.row_steps += 1
        self.drafted += len(tree.tokens) - 1
        for at, node in enumerate([0, *path]):
            if tree.children(node):
                self.tried.extend([0] * (at + 1 - len(self.tried)))
                self.hits.extend([0] * (at + 1 - len(self.hits)))
                self.tried[at] += 1
                self.hits[at] += at < len(path)

    @property
    def accepted_per_step(self) -> float:
        """Accepted draft tokens per step and row."""
        return sum(self.hits) / self.row_steps if self.row_steps else 0.0

    @property
    def mean_tv(self) -> float | None:
        """Mean measured distance per judged token; None if it was not measured."""
        return sum(self.tv) / len(self.tv) if self.tv else None
