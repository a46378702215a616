"""Muon for weight matrices, AdamW for the rest, and a learning rate that follows the clock.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum
of every hidden matrix; on this task it needs about half the steps of AdamW. torch has its own from
2.9 on, which computes in bfloat16: slow on CPUs without bfloat16 units, hence this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_LAYERS = ("layers", "blocks")
"""What lists of transformer layers are called."""


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by five Newton-Schulz steps, matrices of one shape together.

    Args:
        params: matrices (rows, columns).
        lr: step size, scaled to match AdamW's.
        momentum: Nesterov momentum.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(list(params), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes.setdefault(matrix.shape, []).append(matrix)
            for matrices in shapes.values():
                self._step_shape(matrices, group)

    def _step_shape(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape in one batch."""
        moments = []
        for matrix in matrices:
            state = self.state[matrix]
            if not state:
                state["momentum"] = torch.zeros_like(matrix)
            gradient = matrix.grad if matrix.grad is not None else torch.zeros_like(matrix)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            moments.append(torch.lerp(gradient, state["momentum"], group["momentum"]))
        updates = _orthogonal(torch.stack(moments))
        size = 0.2 * max(matrices[0].shape) ** 0.5
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"])
            matrix.add_(update, alpha=-group["lr"] * size)


def _orthogonal(matrices: Tensor) -> Tensor:
    """Nearest orthogonal matrices, roughly, of (M, rows, columns)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    found: Tensor = x.mT if tall else x
    return found


class Optimisers:
    """Muon for the matrices of `modules` inside transformer layers, AdamW for all else."""

    def __init__(
        self, modules: Iterable[nn.Module], lr: float, others_lr: float | None = None
    ) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for module in modules:
            for name, weight in module.named_parameters():
                if not weight.requires_grad:
                    continue
                inside = any(f".{part}." in f".{name}" for part in _LAYERS)
                hidden = weight.ndim == 2 and inside and "adaLN" not in name
                (matrices if hidden else others).append(weight)
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=lr),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.rates = (lr, lr if others_lr is None else others_lr)
        self.weights = matrices + others

    def step(self, share: float) -> None:
        """One step at `share` of the full learning rate; clears the gradients."""
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """State of both optimisers."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take up a saved state."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def schedule(done: float, warm: float = 0.02, decay: float = 0.35) -> float:
    """Share of the learning rate after `done` of the time: warm up, hold, fall linearly to 0."""
    return max(0.0, min(1.0, done / warm, (1 - done) / decay))
