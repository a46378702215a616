"""Time and peak memory per stage, and fair comparison of variants within one process.

On CUDA each stage is bracketed by events on the current stream and the device is synchronised once,
when the times are read; the host clock runs beside it, so a device time far below the host time
shows a launch-bound stage. On CPU both are the host clock. Counting FLOPs slows a run down by up to
3x: never count in a pass that is timed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

from mmtok.accounting.scopes import Scopes


@dataclass(frozen=True)
class StageTime:
    """What one stage took: milliseconds on the device and on the host, peak memory in MiB."""

    device_ms: float
    host_ms: float
    peak_mib: float | None = None


@dataclass(frozen=True)
class _Mark:
    host_ns: int
    event: Any  # torch.cuda.Event, None on CPU
    peak_mib: float | None  # highest since the mark before


class StageTimer:
    """Times the stages of one run; read `times()` after the run.

    Args:
        device: where the model runs. On CUDA, peak memory is what torch allocated, weights
            included; torch's own peak statistics are reset at every stage boundary.
        cpu_peak: on CPU, report the process's peak resident memory per stage as well (Linux only;
            resets the peak that /proc/self/status shows). Otherwise peak memory is None on CPU.
    """

    def __init__(self, device: torch.device | str = "cpu", *, cpu_peak: bool = False) -> None:
        self._device = torch.device(device)
        self._cpu_peak = cpu_peak
        self._scopes: Scopes[_Mark] = Scopes(self._mark)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time what runs inside as stage `name`; a stage may be entered several times."""
        return self._scopes.stage(name)

    def times(self) -> dict[str, StageTime]:
        """Stage -> times, in the order the stages were first entered."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        out: dict[str, StageTime] = {}
        for name, start, end in self._scopes.spans:
            host = (end.host_ns - start.host_ns) / 1e6
            device = start.event.elapsed_time(end.event) if start.event is not None else host
            old = out.get(name, StageTime(0.0, 0.0))
            peaks = [p for p in (old.peak_mib, end.peak_mib) if p is not None]
            out[name] = StageTime(
                old.device_ms + device, old.host_ms + host, max(peaks) if peaks else None
            )
        return out

    def _mark(self) -> _Mark:
        event, peak = None, None
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._cpu_peak:
            peak = _pop_resident_peak_mib()
        return _Mark(time.perf_counter_ns(), event, peak)


def _pop_resident_peak_mib() -> float | None:
    """Peak resident memory since the last call; None where /proc does not offer it."""
    try:
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    line = next((x for x in status.splitlines() if x.startswith("VmHWM:")), None)
    return int(line.split()[1]) / 1024 if line else None


@dataclass(frozen=True)
class Stats:
    """Median, 10th and 90th percentile of n samples."""

    median: float
    p10: float
    p90: float
    n: int


def summary(samples: Iterable[float]) -> Stats:
    """Statistics of at least one sample, percentiles interpolated linearly."""
    values = sorted(samples)
    if len(values) == 1:
        return Stats(values[0], values[0], values[0], 1)
    cuts = quantiles(values, n=10, method="inclusive")
    return Stats(cuts[4], cuts[0], cuts[8], len(values))


@dataclass(frozen=True)
class StageStats:
    """Statistics of one stage over repeated runs; peak memory is the largest seen."""

    device_ms: Stats
    host_ms: Stats
    peak_mib: float | None


def measure(
    variants: Mapping[str, Callable[[StageTimer], object]],
    *,
    device: torch.device | str = "cpu",
    warmup: int = 3,
    repeats: int = 10,
    seed: int = 0,
    sums: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, StageStats]]:
    """Run the variants in turn, in balanced random order, and summarise each of their stages.

    Every round runs every variant once. The order is drawn anew for every other round and reversed
    in between, so that no variant always runs after the same neighbour.

    Args:
        variants: name -> function of a StageTimer that runs once and enters its stages.
        device: where the variants run.
        warmup: rounds that are run and thrown away.
        repeats: rounds that are kept.
        seed: of the order.
        sums: name -> stages whose times are added up run by run, under that name.

    Returns:
        variant -> stage -> statistics. The stage "total" is the sum of the stages of one run; a
        median of sums, not the sum of medians.
    """
    order = list(variants)
    draw = random.Random(seed)
    samples: dict[str, list[dict[str, StageTime]]] = {name: [] for name in variants}
    for turn in range(warmup + repeats):
        if turn % 2:
            order.reverse()
        else:
            draw.shuffle(order)
        for name in order:
            timer = StageTimer(device)
            variants[name](timer)
            times = timer.times()
            if turn >= warmup:
                parts = {"total": list(times)} | dict(sums or {})
                added = {part: _total(times, stages) for part, stages in parts.items()}
                samples[name].append(times | added)
    return {name: _statistics(runs) for name, runs in samples.items()}


def _total(times: Mapping[str, StageTime], stages: Sequence[str]) -> StageTime:
    some = [times[stage] for stage in stages if stage in times]
    peaks = [t.peak_mib for t in some if t.peak_mib is not None]
    return StageTime(
        sum(t.device_ms for t in some),
        sum(t.host_ms for t in some),
        max(peaks) if peaks else None,
    )


def _statistics(runs: list[dict[str, StageTime]]) -> dict[str, StageStats]:
    stages = list(dict.fromkeys(stage for run in runs for stage in run))
    out = {}
    for stage in stages:
        seen = [run[stage] for run in runs if stage in run]
        peaks = [t.peak_mib for t in seen if t.peak_mib is not None]
        out[stage] = StageStats(
            summary(t.device_ms for t in seen),
            summary(t.host_ms for t in seen),
            max(peaks) if peaks else None,
        )
    return out
