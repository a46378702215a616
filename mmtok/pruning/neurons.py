"""Which neurons of the feed-forward networks decode steps compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NeuronStage:
    """Compute a share of each feed-forward network's neurons in decode steps.

    Attributes:
        share: of the neurons, in (0, 1].
        rule: (T, M) activations of a prompt's tokens in one layer, and how many neurons -> (C,)
            int64 neurons to compute.
    """

    share: float
    rule: Callable[[Tensor, int], Tensor]

    def width(self, neurons: int) -> int:
        """How many of a layer's neurons are computed: the share rounded half up, at least 1."""
        return max(math.floor(self.share * neurons + 0.5), 1)
