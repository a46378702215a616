"""A chain of drafts from a smaller model (arXiv 2211.17192, 2302.01318).

With `stop` and temperature 0 it drafts as the small model of BiLD (arXiv 2302.07863) does; `bild`
has the rest of that method.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmtok.decoding.base import check_nodes
from mmtok.decoding.growth import Branching, Growth, Noise
from mmtok.decoding.modeldraft import ModelDrafter
from mmtok.decoding.tree import Kind
from mmtok.errors import InputError


@dataclass(kw_only=True)
class DraftModel(ModelDrafter):
    """Draw `tokens` tokens one after another; at temperature 0 take the most likely ones.

    Attributes:
        tokens: longest draft.
        stop: end the draft where the most likely token is below this probability.
    """

    tokens: int = 4
    stop: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1 or not 0 <= self.stop <= 1:
            raise InputError(
                f"draftmodel: tokens >= 1 and stop in [0, 1], got {self.tokens} and {self.stop}"
            )
        check_nodes("draftmodel", self.tokens)

    @property
    def kind(self) -> Kind:
        """Drawn, or chosen at temperature 0."""
        return "chain" if self.temperature else "det"

    def grow(self, root: int, noise: Noise, generator: torch.Generator) -> Growth:
        """A chain."""
        drawn = noise if self.temperature else None
        return Branching(root, [1] * self.tokens, drawn, stop=self.stop)
