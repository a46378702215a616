"""SpecTr (arXiv 2310.15141): independent draws from a draft model, for the K-SEQ rule."""

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
class SpecTr(ModelDrafter):
    """Draw branching[d] children at depth d, each from the whole distribution.

    Attributes:
        branching: children per node, level by level.
    """

    branching: tuple[int, ...] = (2, 2, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.branching or min(self.branching) < 1 or not self.temperature:
            raise InputError("spectr: branching counts from 1 on, and the temperature is above 0")
        check_nodes("spectr", sum(accumulate(self.branching, mul)))

    @property
    def kind(self) -> Kind:
        """Independent draws."""
        return "iid"

    def grow(self, root: int, noise: Noise, generator: torch.Generator) -> Growth:
        """A tree of a fixed form."""
        return Branching(root, self.branching, noise, replace=True)
