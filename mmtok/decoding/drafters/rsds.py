"""RSD-S (arXiv 2402.14160): stochastic beam search as a draft, whole paths without replacement."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmtok.decoding.base import check_nodes
from mmtok.decoding.growth import Beam, Growth, Noise
from mmtok.decoding.modeldraft import ModelDrafter
from mmtok.errors import InputError


@dataclass(kw_only=True)
class RSDS(ModelDrafter):
    """Keep the `width` best perturbed paths of every level, `depth` levels.

    Attributes:
        width: nodes per level.
        depth: levels.
    """

    width: int = 3
    depth: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1 or self.depth < 1 or not self.temperature:
            raise InputError("rsds: width and depth start at 1, and the temperature is above 0")
        check_nodes("rsds", self.width * self.depth)

    def grow(self, root: int, noise: Noise, generator: torch.Generator) -> Growth:
        """A beam."""
        return Beam(root, self.width, self.depth, noise)
