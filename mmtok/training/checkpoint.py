"""What the recipes counted in steps share: checkpoints, the order of the data, fp16 export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save(path: Path, saved: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all, the state of torch's random numbers with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    torch.save({**saved, "random": torch.get_rng_state()}, beside)
    beside.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """The checkpoint, None if there is none; sets torch's random numbers to its state."""
    if not path.exists():
        return None
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    torch.set_rng_state(saved["random"])
    return saved


def batch_at(step: int, batch: int, size: int, seed: int) -> Tensor:
    """Places (batch,) of the items of a step, every item once an epoch in an order of its own."""
    per_epoch = size // batch
    epoch, place = divmod(step, per_epoch)
    order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(size, generator=order)[place * batch : (place + 1) * batch]


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating point weights in fp16, contiguous and on the CPU."""
    kept = {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
    return {name: w.half() if w.is_floating_point() else w for name, w in kept.items()}
