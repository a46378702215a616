"""Reference vectors, where a folder of them is given by MMTOK_GOLDEN; skipped elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtok.pruning.greedy import greedy_diverse
from mmtok.pruning.methods.todre import task_relevance

GOLDEN = Path(os.environ.get("MMTOK_GOLDEN", "not-given"))
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="MMTOK_GOLDEN names no folder of reference vectors"
)


def cases(name: str) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """(parameters, tensors by short name) of every case of one file."""
    from safetensors import safe_open

    with safe_open(GOLDEN / "pruning" / f"{name}.safetensors", "pt") as file:
        meta = file.metadata()
        return [
            (
                json.loads(meta[f"case{i}.params"]),
                {
                    key.split(".", 1)[1]: file.get_tensor(key)
                    for key in file.keys()  # noqa: SIM118 (safe_open is no mapping)
                    if key.startswith(f"case{i}.")
                },
            )
            for i in range(int(meta["cases"]))
        ]


class KnownAttention:
    """Attention rows from a stored head-mean map."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.map = rows

    def rows(self, item: int, index: torch.Tensor) -> torch.Tensor:
        return self.map[index]

    def sees(self, item: int, index: torch.Tensor, target: torch.Tensor) -> bool:
        return True


def test_todre() -> None:
    for params, tensors in cases("todre_formula"):
        x, attention = tensors["input.features"], tensors["input.cls_attn"]
        for rule in ("kcenter", "maxsum"):
            got = greedy_diverse(x, params["k"], int(attention.argmax()), rule)
            assert torch.equal(got, tensors[f"output.{rule}"].long())
        rows = tensors["input.attn_head_mean"]
        visual = torch.zeros(len(rows), dtype=torch.bool)
        visual[params["v_start"] : params["v_start"] + len(x)] = True
        from_text, from_visual = task_relevance(KnownAttention(rows), 0, visual)  # type: ignore[arg-type]
        assert from_text == pytest.approx(float(tensors["output.a_text_to_visual"]), rel=1e-10)
        assert from_visual == pytest.approx(float(tensors["output.a_visual_to_text"]), rel=1e-10)
