"""DySpec (arXiv 2410.11744): a tree that grows where it is likely to be accepted.

One forward of the draft model per node, where the paper batches them by threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmtok.decoding.base import check_nodes
from mmtok.decoding.growth import Growth, Heap, Noise
from mmtok.decoding.modeldraft import ModelDrafter
from mmtok.errors import InputError


@dataclass(kw_only=True)
class DySpec(ModelDrafter):
    """Draw `budget` nodes, the likeliest place first.

    Attributes:
        budget: draft nodes.
        depth: longest path.
    """

    budget: int = 8
    depth: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget < 1 or self.depth < 1 or not self.temperature:
            raise InputError("dyspec: budget and depth start at 1, and the temperature is above 0")
        check_nodes("dyspec", self.budget)

    def grow(self, root: int, noise: Noise, generator: torch.Generator) -> Growth:
        """A tree grown node by node."""

        def uniform() -> float:
            return float(torch.rand((), generator=generator, dtype=torch.float64))

        return Heap(root, self.budget, self.depth, uniform)
