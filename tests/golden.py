"""Reading of reference vectors, where a folder of them is given by MMTOK_GOLDEN."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

GOLDEN = Path(os.environ.get("MMTOK_GOLDEN", "not-given"))
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="MMTOK_GOLDEN names no folder of reference vectors"
)
Case = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def tokenizer_cases(name: str) -> tuple[dict[str, Any], list[Case]]:
    """Configuration, and (inputs and outputs, weights) of every case, by name without prefixes.

    Where a case has no weights of its own, those of the first one hold.
    """
    from safetensors import safe_open

    with safe_open(GOLDEN / "tokenizers" / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    cases: list[Case] = []
    for i in range(len({key.split(".")[0] for key in tensors})):
        part = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"case{i}.")}
        weights = {k.split(".", 1)[1]: v for k, v in part.items() if k.startswith("weights.")}
        values = {
            k.split(".", 1)[1] if k.startswith("output.") else k: v
            for k, v in part.items()
            if not k.startswith("weights.")
        }
        cases.append((values, weights or (cases[0][1] if cases else {})))
    return config, cases
