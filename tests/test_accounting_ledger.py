"""The ledger: totals, JSON contract, table."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from mmtok import Ledger
from mmtok.accounting.ledger import Stage

LEDGER = Ledger(
    [
        Stage(
            "encode", tokens_out=576, flops=1000, flops_analytic=1000, host_ms=3.0, peak_mib=70.0
        ),
        Stage("reduce.select", tokens_in=576, tokens_out=64, host_ms=0.5),
        Stage("prefill", tokens_in=128, flops=2000, flops_analytic=2050, host_ms=4.0, kv_bytes=512),
        Stage("decode", tokens_out=8, flops=30, host_ms=2.0, peak_mib=60.0, kv_bytes=640),
    ],
    uncounted={"aten.topk": 1, "aten._softmax": 24},
    meta={"model": "tiny"},
)


def test_total() -> None:
    total = LEDGER.total
    assert (total.flops, total.host_ms, total.flops_analytic) == (3030, 9.5, 3050)
    assert (total.peak_mib, total.kv_bytes) == (70.0, 640)
    assert total.device_ms is total.energy_j is total.mfu is total.tokens_in is None


def test_json_round_trip() -> None:
    data = json.loads(LEDGER.to_json())
    assert Ledger.from_dict(data) == LEDGER
    assert set(data) >= {"stages", "total", "uncounted"}
    assert set(data["stages"][0]) >= {
        *("stage", "tokens_in", "tokens_out", "flops", "flops_analytic"),
        *("device_ms", "host_ms", "peak_mib", "kv_bytes"),
    }
    assert data["total"]["flops"] == 3030


def test_table_is_plain_and_tells_what_is_off() -> None:
    table = LEDGER.table()
    rows = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert "\x1b" not in table
    assert "128" in rows["prefill"]
    assert "4.00" in rows["prefill"]
    assert "3.03 k" in rows["total"]
    assert "MFU" not in table
    assert "device ms" not in table
    assert "prefill: analytic FLOPs are +2.5% off the counted ones" in table
    assert "encode: analytic" not in table
    assert "not counted as FLOPs: aten._softmax x24, aten.topk x1" in table


def test_a_stage_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        LEDGER.stages[0].flops = 0  # type: ignore[misc]
