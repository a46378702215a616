"""Rectified flow: from noise to data along a learned velocity, with guidance.

A picture x and noise e mix as x_t = t e + (1 - t) x; the velocity is e - x. Guidance sharpens the
condition: plain (arXiv 2207.12598), or projected (APG, arXiv 2410.02416), which damps repetition,
bounds the step and drops its part along the conditional velocity, so that large scales do not
over-saturate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


class Projected:
    """APG: call it once per step; it remembers the running difference.

    Args:
        scale: 1 leaves the conditional velocity as it is.
        momentum: share of the last running difference, negative.
        bound: largest length of the difference over one item.
    """

    def __init__(self, scale: float, *, momentum: float = -0.5, bound: float = 2.5) -> None:
        self.scale, self.momentum, self.bound = scale, momentum, bound
        self.running: Tensor | None = None

    def __call__(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """The guided velocity (B, ...)."""
        difference = conditional - unconditional
        if self.running is not None:
            difference = difference + self.momentum * self.running
        self.running = difference
        step = difference.flatten(1).double()
        step = step * (self.bound / step.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
        along = torch.nn.functional.normalize(conditional.flatten(1).double(), dim=1)
        rest = step - (step * along).sum(1, keepdim=True) * along
        guided: Tensor = conditional + (self.scale - 1) * rest.view_as(conditional)
        return guided.to(conditional.dtype)


def sample(
    noise: Tensor,
    conditional: Velocity,
    unconditional: Velocity,
    *,
    steps: int,
    scale: float = 1.0,
    projected: bool = True,
) -> Tensor:
    """Data (B, ...) from noise, by Euler steps of equal length from t = 1 to t = 0.

    Args:
        noise: (B, ...) Gaussian.
        conditional, unconditional: velocity at (x, t (B,)); the second is called for scale != 1.
        steps: at least 1.
        scale: of the guidance; 1 is none.
        projected: APG instead of plain guidance.
    """
    x, guide = noise, Projected(scale)
    for place in range(steps, 0, -1):
        t = torch.full((len(x),), place / steps, device=x.device)
        v = conditional(x, t)
        if scale != 1:
            free = unconditional(x, t)
            v = guide(v, free) if projected else free + scale * (v - free)
        x = x - v / steps
    return x


def towards(
    picture: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, t: Tensor, given: Tensor
) -> Tensor:
    """The velocity at x (B, ...), t (B,), of a model that predicts what the flow leads to."""
    return (x - picture(x, t, given)) / t.view(-1, *(1,) * (x.ndim - 1))
