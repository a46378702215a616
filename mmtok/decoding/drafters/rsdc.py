"""RSD-C (arXiv 2402.14160): draws without replacement, a constant number of them per level."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import torch

from mmtok.decoding.base import check_nodes
from mmtok.decoding.growth import Branching, Growth, Noise
from mmtok.decoding.modeldraft import ModelDrafter
from mmtok.decoding.tree import Kind
from mmtok.errors import InputError


@dataclass(kw_only=True)
class RSDC(ModelDrafter):
    """Draw branching[d] children at depth d; at temperature 0 take the most likely ones.

    Attributes:
        branching: children per node, level by level.
    """

    branching: tuple[int, ...] = (2, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.branching or min(self.branching) < 1:
            raise InputError(f"rsdc: branching needs numbers from 1 on, got {self.branching}")
        check_nodes("rsdc", sum(accumulate(self.branching, mul)))

    @property
    def kind(self) -> Kind:
        """Drawn, or chosen at temperature 0."""
        return "wor" if self.temperature else "det"

    def grow(self, root: int, noise: Noise, generator: torch.Generator) -> Growth:
        """A tree of a fixed form."""
        return Branching(root, self.branching, noise if self.temperature else None)
