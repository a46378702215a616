"""What the recipes counted in steps share: checkpoints, the order of the data, fp16 export."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.io.files import check_file, reason, replacing


def save(path: Path, saved: Mapping[str, Any], made_with: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint whole or not at all, the state of torch's random numbers with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"random": torch.get_rng_state(), "made_with": _line(made_with)}
    with replacing(path) as beside:
        torch.save({**saved, **state}, beside)


def load(path: Path, made_with: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The checkpoint, None if there is none; sets torch's random numbers to its state.

    Raises:
        InputError: it was made with other settings or other data, or is no whole checkpoint.
    """
    if not path.exists():
        return None
    file = check_file(path, "a checkpoint of this recipe")
    try:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        random, said = saved["random"], saved["made_with"]
    except Exception as error:  # torch raises whatever it trips over
        raise InputError(
            f"{file}: no whole checkpoint ({reason(error):.80}), choose another folder"
        ) from None
    if said != _line(made_with):
        raise InputError(f"{file}: made with other settings or other data, choose another folder")
    torch.set_rng_state(random)
    return saved


def digest(*data: Tensor) -> int:
    """A checksum of tensors, their order and shapes, by which `made_with` tells data apart."""
    crc = 0
    for part in data:
        crc = zlib.crc32(repr(tuple(part.shape)).encode(), crc)
        row = part.detach().cpu().contiguous().reshape(-1)
        crc = zlib.crc32(row.view(torch.uint8).numpy().data, crc)
    return crc


def _line(made_with: Mapping[str, Any] | None) -> str:
    return json.dumps(made_with, sort_keys=True)


def batch_at(step: int, batch: int, size: int, seed: int) -> Tensor:
    """Places (batch,) of the items of a step, every item once an epoch in an order of its own.

    Raises:
        InputError: there are fewer items than a batch takes.
    """
    if not 1 <= batch <= size:
        raise InputError(f"batch of {batch}, expected 1 to {size}: there are no more to train on")
    per_epoch = size // batch
    epoch, place = divmod(step, per_epoch)
    order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(size, generator=order)[place * batch : (place + 1) * batch]


def export(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write weights in fp16 and their config.json, each file whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.safetensors") as beside:
        save_file(halved(state), beside, metadata={"format": "pt"})
    with replacing(folder / "config.json") as beside:
        beside.write_text(json.dumps(config, indent=1) + "\n")


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating point weights in fp16, contiguous and on the CPU."""
    kept = {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
    return {name: w.half() if w.is_floating_point() else w for name, w in kept.items()}
