"""Self-speculation with an early exit (LayerSkip, arXiv 2404.16710).

The target's first layers draft under its own norm and head; `mmtok.decoding.exits` says how. No
code of the authors was read. It pays with models trained to exit early; others decode as correctly
and accept little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmtok.decoding.base import check_nodes
from mmtok.decoding.exits import ExitDrafter
from mmtok.decoding.growth import Branching, Growth, Noise
from mmtok.errors import InputError


@dataclass(kw_only=True)
class EarlyExit(ExitDrafter):
    """Draft `tokens` tokens with the target's first layers.

    Attributes:
        exit: layers that run; 0 for half of them.
        tokens: longest draft.
        temperature: 0 takes the most likely tokens, above it draws.
        stop: end the draft where the most likely token is below this probability.
    """

    exit: int = 0
    tokens: int = 4
    temperature: float = 0.0
    stop: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens < 1 or not self.temperature >= 0 or not 0 <= self.stop <= 1:
            raise InputError(
                "earlyexit: tokens >= 1, temperature >= 0 and stop in [0, 1], "
                f"got {self.tokens}, {self.temperature!r} and {self.stop!r}"
            )
        check_nodes("earlyexit", self.tokens)

    def exits(self, depth: int) -> tuple[int, ...]:
        """The one exit.

        Raises:
            InputError: the model has no such layer to leave early.
        """
        chosen = self.exit or depth // 2
        if not 0 < chosen < depth:
            raise InputError(
                f"earlyexit: exit must be from 1 to {depth - 1} in a model of {depth} layers, "
                f"got {self.exit}"
            )
        return (chosen,)

    def layer(self) -> int:
        """The one exit."""
        return next(iter(self._views))

    def grow(self, root: int, noise: Noise, generator: torch.Generator) -> Growth:
        """A chain."""
        drawn = noise if self.temperature else None
        return Branching(root, [1] * self.tokens, drawn, stop=self.stop)
