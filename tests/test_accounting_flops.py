"""The counter: hand counts, operations it must not take for free, and stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmtok.accounting.flops import FlopCount, count_flops
from mmtok.accounting.formulas import extra_formulas

HAND = json.loads((Path(__file__).parent / "data/accounting/golden.json").read_text())[
    "hand_counts"
]


def counted(run: Callable[[], object]) -> FlopCount:
    with torch.no_grad(), count_flops() as count:
        run()
    return count


LSTM = nn.LSTM(64, 64)
Q = torch.randn(1, 8, 512, 64)
COUNTED: dict[str, Callable[[], object]] = {
    "linear_10x64x48_with_bias": lambda: F.linear(
        torch.ones(10, 64), torch.ones(48, 64), torch.ones(48)
    ),
    "lstm_64_64_len10": lambda: LSTM(torch.ones(10, 1, 64)),
    "cdist_10x64_20x64": lambda: torch.cdist(torch.ones(10, 64), torch.ones(20, 64)),
    "cdist_100x64_200x64": lambda: torch.cdist(torch.ones(100, 64), torch.ones(200, 64)),
    "mv": lambda: torch.ones(30, 40) @ torch.ones(40),
    "dot": lambda: torch.ones(40) @ torch.ones(40),
    "int8_mm": lambda: torch._int_mm(
        torch.ones(32, 64, dtype=torch.int8), torch.ones(64, 48, dtype=torch.int8)
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_hand_counts(name: str) -> None:
    count = counted(COUNTED[name])
    assert count.total == HAND[name] == sum(count.by_op.values())
    assert not count.uncounted


def test_recurrent_layers_on_cuda() -> None:
    """Only CUDA dispatches this operation, so its formula is fed the shapes by hand."""
    weights = [(256, 64), (256, 64), (256,), (256,)]
    formula = extra_formulas()[torch.ops.aten._cudnn_rnn]
    assert formula((10, 1, 64), weights) == HAND["lstm_64_64_len10"]


def test_attention_is_counted_dense() -> None:
    exact = 4 * 8 * 512 * 512 * 64
    assert counted(lambda: F.scaled_dot_product_attention(Q, Q, Q)).total == exact
    assert counted(lambda: F.scaled_dot_product_attention(Q, Q, Q, is_causal=True)).total == exact


def test_fft_has_the_usual_convention() -> None:
    assert counted(lambda: torch.fft.fft(torch.ones(3, 16) + 0j)).total == 3 * 5 * 16 * 4
    assert counted(lambda: torch.fft.rfft(torch.ones(3, 16))).total == 3 * 5 * 16 * 4 // 2
    assert counted(lambda: torch.fft.irfft(torch.ones(3, 9) + 0j)).total == 3 * 5 * 16 * 4 // 2


@pytest.mark.parametrize(
    ("op", "run"),
    [
        ("aten.topk", lambda: torch.ones(9).topk(2)),
        ("aten.sort", lambda: torch.ones(9).argsort()),
        ("aten._softmax", lambda: torch.ones(9).softmax(0)),
        ("aten.linalg_vector_norm", lambda: torch.ones(9).norm()),
        ("aten.native_layer_norm", lambda: F.layer_norm(torch.ones(9), (9,))),
        ("aten.mul", lambda: torch.ones(9) * torch.ones(9)),
        ("aten.sum", lambda: F.cosine_similarity(torch.ones(4, 1, 9), torch.ones(1, 4, 9), dim=-1)),
        ("aten.gelu", lambda: F.gelu(torch.ones(9))),
    ],
)
def test_work_without_a_formula_is_listed(op: str, run: Callable[[], object]) -> None:
    count = counted(lambda: (run(), run()))
    assert count.total == 0
    assert count.uncounted[op] == 2


def test_moving_data_is_free() -> None:
    x = torch.ones(4, 6)
    count = counted(lambda: torch.cat([x.T.reshape(6, 4), x[[0, 1]].view(3, 4)]).to(torch.float16))
    assert count.total == 0
    assert not count.uncounted


def test_composites_are_seen_through_in_inference_mode() -> None:
    with torch.inference_mode(), count_flops() as count:
        F.linear(torch.ones(2, 3, 4), torch.ones(5, 4)).softmax(-1)
    assert count.total == 2 * 6 * 4 * 5
    assert set(count.uncounted) == {"aten._softmax"}


def test_flops_belong_to_the_innermost_stage() -> None:
    def square(n: int) -> None:
        torch.ones(n, n) @ torch.ones(n, n)

    with count_flops() as count:
        square(2)
        with count.stage("prefill"):
            square(4)
            with count.stage("reduce.score"):
                square(3)
            square(4)
        with count.stage("decode"):
            square(5)
    assert count.by_stage == {"prefill": 256, "reduce.score": 54, "decode": 250}
    assert count.total == 16 + 256 + 54 + 250


def test_a_stage_ends_when_an_exception_flies() -> None:
    def broken() -> None:
        with count_flops() as count, count.stage("encode"):
            seen.append(count)
            torch.ones(2, 2) @ torch.ones(2, 2)
            raise KeyError

    seen: list[FlopCount] = []
    with pytest.raises(KeyError):
        broken()
    assert seen[0].by_stage == {"encode": 16}
    torch.ones(2, 2) @ torch.ones(2, 2)
    assert seen[0].total == 16
