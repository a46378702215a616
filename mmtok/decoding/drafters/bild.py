"""The drafts of BiLD, the big little decoder (arXiv 2302.07863), for the verifier `rollback`.

The small model goes on until it is unsure (fallback) or for `tokens` tokens; the large one then
reads the draft and takes back what it finds too unlikely (rollback). After a rollback the large
model writes one more token before the small one goes on. The authors' code is
kssteven418/BigLittleDecoder; batches, and the exact rules instead of `rollback`, are ours. With an
exact rule the pause after a rejection buys nothing: `draftmodel(temperature=0, stop=0.6)` drafts
the same without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmtok.decoding.base import StepResult, check_nodes
from mmtok.decoding.growth import Branching, Growth, Noise
from mmtok.decoding.modeldraft import ModelDrafter
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree, Kind
from mmtok.errors import InputError


@dataclass(kw_only=True)
class BiLD(ModelDrafter):
    """Take the small model's most likely tokens while it is sure of them.

    Attributes:
        model: a causal language model with the target's vocabulary.
        temperature: 0, the most likely tokens are taken.
        fallback: the draft ends in front of a token below this probability.
        tokens: longest draft.
    """

    temperature: float = 0.0
    fallback: float = 0.6
    tokens: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1 or not 0 <= self.fallback <= 1 or self.temperature:
            raise InputError(
                "bild: tokens >= 1, fallback in [0, 1] and temperature 0, "
                f"got {self.tokens}, {self.fallback!r} and {self.temperature!r}"
            )
        check_nodes("bild", self.tokens)

    @property
    def kind(self) -> Kind:
        """Chosen, not drawn."""
        return "det"

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Read the prompts."""
        super().start(target, ids, seeds)
        self._undone = [False] * len(ids)

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """A chain per active row, none after a rollback."""
        drafting = [on and not undone for on, undone in zip(active, self._undone, strict=True)]
        return super().propose(ids, drafting)

    def grow(self, root: int, noise: Noise, generator: torch.Generator) -> Growth:
        """A chain."""
        return Branching(root, [1] * self.tokens, None, stop=self.fallback)

    def observe(self, results: list[StepResult | None]) -> None:
        """Note which drafts were taken back."""
        self._undone = [
            result is not None and len(result.verdict.path) < len(result.tree.tokens) - 1
            for result in results
        ]
