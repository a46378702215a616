"""One hash for what made codes: its settings and every bit of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of settings (plain values) and of weights: names, types, shapes and values."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        data = weight.detach().cpu().contiguous()
        found.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        found.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
