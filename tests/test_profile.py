"""Profile: what stands against what in the ratios, and that both sides do the same work."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import mmtok
import mmtok.profile as profile_module
from mmtok.accounting.ledger import Ledger, Stage
from mmtok.accounting.timing import StageStats, StageTime, Stats, measure
from mmtok.profile import _ratios, profile


def test_ratios_charge_the_selection_to_the_reduced_prefill():
    baseline = Ledger(
        [
            Stage("encode", flops=100, device_ms=10.0),
            Stage("prefill", flops=1000, device_ms=60.0),
            Stage("decode", flops=100, device_ms=30.0),
        ]
    )
    reduced = Ledger(
        [
            Stage("encode", flops=100, device_ms=10.0),
            Stage("reduce.score", flops=20, device_ms=2.0),
            Stage("reduce.select", flops=30, device_ms=3.0),
            Stage("prefill", flops=200, device_ms=15.0),
            Stage("decode", flops=50, device_ms=20.0),
        ]
    )
    one = {"n": 1, "p10": 0.0, "p90": 0.0}
    stats = {
        side: {name: StageStats(*[Stats(median=ms, **one)] * 2, None) for name, ms in times.items()}
        for side, times in {
            "baseline": {"before decoding": 60.0, "total": 100.0},
            "reduced": {"before decoding": 20.0, "total": 50.0},
        }.items()
    }
    ratios = _ratios(baseline, reduced, stats)
    assert ratios["prefill_ms"] == 60 / 20
    assert ratios["predicted"] == 1000 / (200 + 20 + 30)
    assert ratios["total_ms"] == 100 / 50
    assert ratios["flops"] == 1200 / 400


def test_sums_are_taken_run_by_run(monkeypatch):
    """A run slow in one stage and a run slow in another make no fast run together."""
    runs = iter([(1, 9), (9, 1), (9, 9)])

    class Timer:
        def __init__(self, device):
            first, second = next(runs)
            self.seen = {"a": StageTime(first, first), "b": StageTime(second, second)}

        def times(self):
            return self.seen

    monkeypatch.setattr("mmtok.accounting.timing.StageTimer", Timer)
    made = measure({"x": lambda timer: None}, warmup=0, repeats=3, sums={"both": ["a", "b"]})["x"]
    assert made["both"].device_ms.median == made["total"].device_ms.median == 10
    assert made["a"].device_ms.median == made["b"].device_ms.median == 9


@pytest.fixture(scope="module")
def made():
    lvlm = mmtok.load("llava", dummy=True)
    inputs = lvlm.inputs([Image.new("RGB", (84, 84), (200, 40, 40))], "what?")
    return profile(lvlm, "random(keep=9)", inputs, repeats=3, warmup=1, new_tokens=3)


def test_both_sides_generate_the_same_number_of_tokens(made):
    for side in (made.baseline, made.reduced):
        assert side.meta["new_tokens"] == 3
        assert side.stages[-1].tokens_out == 2
    assert made.baseline.meta["visual_tokens"] == {"in": 36, "out": 36}
    assert made.reduced.meta["visual_tokens"] == {"in": 36, "out": 9}


def test_ledgers_hold_the_medians(made):
    for side, account in (("baseline", made.baseline), ("reduced", made.reduced)):
        for row in account.stages:
            spread = made.spread[side][row.stage]
            assert row.device_ms == spread["median"]
            assert spread["p10"] <= spread["median"] <= spread["p90"]
            assert spread["n"] == 3
            assert row.flops == row.flops_analytic


def test_energy_is_of_whole_synchronised_runs_on_a_gpu_and_none_elsewhere(made, monkeypatch):
    assert made.energy_j == {"baseline": None, "reduced": None}
    runs = []

    class Timer:
        def times(self):
            runs.append("synchronised")

    monkeypatch.setattr(profile_module.hardware, "energy", lambda run, index: (run(), index)[1])
    monkeypatch.setattr(profile_module, "StageTimer", lambda device: runs.append(device) or Timer())
    assert profile_module._energy(torch.device("cuda", 3), lambda timer: runs.append("run")) == 3
    assert runs == [torch.device("cuda", 3), "run", "synchronised"]


def test_kv_bytes_and_machine(made):
    fewer = made.baseline.stages[-1].kv_bytes - made.reduced.stages[-1].kv_bytes
    assert fewer == 27 * 4 * 2 * 64 * 4  # tokens, layers, keys and values, width, bytes
    assert made.machine["threads"] == torch.get_num_threads()
    assert made.machine["cpu"]
    assert all(word in made.table() for word in ("baseline: none", "reduced: random", "p90"))
