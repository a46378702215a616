"""Timer, interleaved measuring, hardware peaks."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from mmtok.accounting import hardware
from mmtok.accounting.timing import StageTimer, measure, summary


def test_times_belong_to_the_innermost_stage() -> None:
    timer = StageTimer("cpu")
    with timer.stage("prefill"):
        time.sleep(0.005)
        with timer.stage("reduce.score"):
            time.sleep(0.2)
    with timer.stage("prefill"):
        time.sleep(0.005)
    times = timer.times()
    assert list(times) == ["prefill", "reduce.score"]
    assert 10 <= times["prefill"].host_ms < times["reduce.score"].host_ms
    assert all(t.device_ms == t.host_ms and t.peak_mib is None for t in times.values())


@pytest.mark.skipif(sys.platform != "linux", reason="peak resident memory is read from /proc")
def test_peak_memory_of_a_stage_on_cpu() -> None:
    timer = StageTimer("cpu", cpu_peak=True)
    with timer.stage("encode"):
        torch.ones(64 * 2**20, dtype=torch.uint8).sum()
    with timer.stage("decode"):
        pass
    times = timer.times()
    encode, decode = times["encode"].peak_mib, times["decode"].peak_mib
    if encode is None or decode is None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    assert encode - decode > 40


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_time_covers_what_the_host_only_launched() -> None:
    x = torch.randn(4096, 4096, device="cuda")
    x @ x
    timer = StageTimer("cuda")
    with timer.stage("prefill"):
        for _ in range(20):
            x @ x
    with timer.stage("decode"):
        pass
    times = timer.times()
    assert times["prefill"].device_ms > 10 * times["decode"].device_ms
    assert times["prefill"].device_ms > times["prefill"].host_ms
    peak = times["prefill"].peak_mib
    assert peak is not None
    assert peak > 64


def test_summary() -> None:
    stats = summary(range(101))
    assert (stats.median, stats.p10, stats.p90, stats.n) == (50, 10, 90, 101)
    assert summary([7.0]).p90 == 7.0


def test_variants_alternate_and_warm_up_is_thrown_away() -> None:
    calls: list[str] = []

    def variant(name: str, seconds: float) -> object:
        def run(timer: StageTimer) -> None:
            calls.append(name)
            with timer.stage("encode"):
                time.sleep(seconds if len(calls) > 2 else 0.2)
            with timer.stage("prefill"):
                pass

        return run

    variants = {"a": variant("a", 0.001), "b": variant("b", 0.02)}
    result = measure(variants, warmup=1, repeats=5)  # type: ignore[arg-type]
    rounds = [calls[i : i + 2] for i in range(0, len(calls), 2)]
    assert len(rounds) == 6
    assert all(sorted(pair) == ["a", "b"] for pair in rounds)
    assert all(x == y[::-1] for x, y in zip(rounds[::2], rounds[1::2], strict=True))
    again = calls.copy()
    calls.clear()
    measure(variants, warmup=1, repeats=5)  # type: ignore[arg-type]
    assert calls == again  # same seed, same order
    assert list(result["a"]) == ["encode", "prefill", "total"]
    encode = {name: stages["encode"].host_ms for name, stages in result.items()}
    assert encode["a"].n == 5
    assert encode["a"].median < encode["b"].median
    assert encode["b"].p90 < 200  # the slow warm-up runs are gone
    assert result["b"]["total"].host_ms.median >= encode["b"].median


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_known_devices(name: str, expected: str) -> None:
    found = hardware.find(name)
    assert found is not None
    assert found.name == expected


@pytest.mark.parametrize(
    "name",
    ["cpu", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA B9000", ""],
)
def test_unknown_devices_have_no_utilisation(name: str) -> None:
    assert hardware.find(name) is None
    assert hardware.mfu(10**12, 1.0, hardware.find(name), "float16") is None
    assert hardware.mbu(10**9, 1.0, hardware.find(name)) is None


def test_utilisation() -> None:
    h200 = hardware.find("NVIDIA H200")
    assert hardware.mfu(989_500_000_000, 2.0, h200, torch.bfloat16) == pytest.approx(0.5)
    assert hardware.mbu(4_800_000_000, 4.0, h200) == pytest.approx(0.25)
    assert hardware.mfu(10**12, 1.0, h200, torch.int8) is None  # no peak of that type
    assert hardware.mfu(10**12, None, h200, torch.float16) is None
    assert hardware.mfu(10**12, 1.0, hardware.find("Tesla T4"), torch.bfloat16) is None


def test_energy_is_none_without_a_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert hardware.energy(lambda: None) is None


def test_energy_is_averaged_over_a_window_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    runs: list[int] = []

    def run() -> None:
        runs.append(1)
        clock[0] += 0.3

    monkeypatch.setattr(hardware.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(hardware, "_energy_counter", lambda index: lambda: int(clock[0] * 100_000))
    assert hardware.energy(run, window_s=0.1) == pytest.approx(30.0)  # 100 W for 0.3 s each
    assert len(runs) == 4
