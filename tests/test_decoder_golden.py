"""Reference vectors of the methods that work inside the decoder; see test_golden.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok.pruning import FastV
from mmtok.pruning.decoder import DecoderPrompt
from mmtok.pruning.methods.todre import task_relevance
from tests.test_golden import GOLDEN, cases

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="MMTOK_GOLDEN names no folder of reference vectors"
)


class KnownAttention:
    """Attention rows from a stored head-mean map."""

    flops = 0

    def __init__(self, rows: torch.Tensor) -> None:
        self.map = rows

    def rows(self, item: int, index: torch.Tensor) -> torch.Tensor:
        return self.map[index]

    def sees(self, item: int, index: torch.Tensor, target: torch.Tensor) -> bool:
        return True


def span(length: int, start: int, n: int, **facts: Any) -> DecoderPrompt:
    """A prompt of which n tokens from `start` on are visual."""
    place = torch.arange(length)
    inside = (place >= start) & (place < start + n)
    values: dict[str, Any] = {
        "visual": place[inside],
        "text": place[~inside],
        "hidden": torch.zeros(length, 1),
        "size": torch.ones(n),
        "cell": torch.zeros(n, 4, dtype=torch.int64),
        "norm": lambda x: x,
    }
    return DecoderPrompt(**values | facts)


def test_todre_relevance() -> None:
    for params, tensors in cases("todre_formula"):
        rows = tensors["input.attn_head_mean"]
        prompt = span(
            len(rows),
            params["v_start"],
            len(tensors["input.features"]),
            attention=KnownAttention(rows),
        )
        from_text, from_visual = task_relevance(prompt)
        assert from_text == pytest.approx(float(tensors["output.a_text_to_visual"]), rel=1e-10)
        assert from_visual == pytest.approx(float(tensors["output.a_visual_to_text"]), rel=1e-10)


def test_fastv() -> None:
    for params, tensors in cases("fastv"):
        row = tensors["input.attn_last_row"][0].mean(0)
        seen = KnownAttention(row.expand(params["seq"], -1))
        prompt = span(params["seq"], params["v_start"], params["n_img"], attention=seen)
        (stage,) = FastV(keep=params["k"]).in_decoder(32)
        kept = prompt.visual[stage.rule(prompt).indices[0]]
        places = torch.cat([prompt.text, kept]).sort().values
        assert torch.equal(places, tensors["output.kept_sequence"])
