"""Baseline and reduced run of one prompt, in one process, in alternating order.

The speed-up is set against what the FLOP ratio alone would predict: a method that saves tokens but
spends the gain on selection, or meets a launch-bound device, shows it here.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmtok.accounting import hardware
from mmtok.accounting.flops import count_flops
from mmtok.accounting.ledger import Ledger, Stage
from mmtok.accounting.rows import Pass, ledger
from mmtok.accounting.timing import StageStats, StageTimer, measure
from mmtok.pipeline import Pipeline
from mmtok.table import render

if TYPE_CHECKING:
    from mmtok.models.lvlm import LVLM
    from mmtok.models.reduction import Reduction
    from mmtok.pruning import Reducer

PREFILL = ("reduce.score", "reduce.select", "prefill")
"""Stages that stand against the baseline's prefill: what reduces it is charged to it."""
BEFORE_DECODING = "before decoding"
"""Their sum, run by run."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Two accounts of one prompt; times are medians over the repeats.

    Attributes:
        baseline: all visual tokens kept.
        reduced: with the reducers.
        ratio: baseline / reduced of {"prefill_ms", "total_ms", "flops", "predicted"}.
            `prefill_ms` compares the prefill with prefill + scoring + selection; `predicted` is
            the same ratio of counted FLOPs; `flops` and `total_ms` are of the whole run. Times
            are medians of what each run took.
        spread: side -> stage -> {"median", "p10", "p90", "n"} milliseconds on the device.
        energy_j: side -> joule of one run, on a GPU whose counter can be read, else None.
        machine: where it was measured.
    """

    baseline: Ledger
    reduced: Ledger
    ratio: dict[str, float]
    spread: dict[str, dict[str, dict[str, float]]]
    energy_j: dict[str, float | None]
    machine: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The attributes as plain values, JSON-ready."""
        sides = {"baseline": self.baseline.to_dict(), "reduced": self.reduced.to_dict()}
        rest = ("ratio", "spread", "energy_j", "machine")
        return sides | {name: getattr(self, name) for name in rest}

    def table(self) -> str:
        """Both ledgers, the spread of the times, the ratios and the machine."""
        parts = []
        for side, account in (("baseline", self.baseline), ("reduced", self.reduced)):
            parts += [f"{side}: {account.meta['reduce']}", account.table()]
        lines = [["ms", "median", "p10", "p90", "reduced", "p10", "p90"]]
        for stage in (*(row.stage for row in self.reduced.stages), BEFORE_DECODING, "total"):
            sides = [self.spread[side].get(stage, {}) for side in ("baseline", "reduced")]
            cells = [s.get(name) for s in sides for name in ("median", "p10", "p90")]
            lines.append([stage, *("" if x is None else f"{x:.2f}" for x in cells)])
        ratio = self.ratio
        parts += [
            render(lines, total=True),
            f"prefill speed-up {ratio['prefill_ms']:.2f}x, selection included; "
            f"its FLOPs alone predict {ratio['predicted']:.2f}x",
            f"whole run speed-up {ratio['total_ms']:.2f}x with {ratio['flops']:.2f}x fewer FLOPs",
            *(f"{side}: {j:.2f} J a run" for side, j in self.energy_j.items() if j is not None),
            ", ".join(f"{name} {value}" for name, value in self.machine.items()),
        ]
        return "\n".join(parts) + "\n"


def profile(
    lvlm: LVLM,
    reduce: str | Reducer | Sequence[str | Reducer],
    inputs: dict[str, Any],
    *,
    repeats: int = 10,
    warmup: int = 2,
    new_tokens: int = 8,
    check: Callable[[Reduction], None] | None = None,
) -> Profile:
    """Time and count one prompt with and without reducers.

    FLOPs are counted in a pass of their own, before any timing. Both sides generate exactly
    `new_tokens` tokens. The inputs are prepared once, so the ledgers have no row for the source.

    Args:
        lvlm: the model.
        reduce: a spec, a reducer, or a list of them.
        inputs: one prompt or a batch, as `lvlm.inputs` makes it.
        repeats: rounds that are timed.
        warmup: rounds before that.
        new_tokens: tokens to generate.
        check: called with the reduction of the counting pass; may raise.

    Raises:
        InputError: a spec is wrong, or a reducer does not fit the model.
    """
    pipes = {"baseline": Pipeline(lvlm), "reduced": Pipeline(lvlm, reduce)}
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    counts = {}
    for side, pipe in pipes.items():
        with count_flops() as counts[side]:
            done = pipe.one_pass(inputs, counts[side], **options)
        if check is not None:
            check(done.reduction)
    last: dict[str, tuple[Pass, StageTimer]] = {}

    def variant(side: str) -> Callable[[StageTimer], object]:
        def once(timer: StageTimer) -> None:
            last[side] = pipes[side].one_pass(inputs, timer, **options), timer

        return once

    stats = measure(
        {side: variant(side) for side in pipes},
        device=lvlm.device,
        warmup=warmup,
        repeats=repeats,
        sums={BEFORE_DECODING: PREFILL},
    )
    sides = {
        side: _with_medians(ledger(lvlm, pipe.spec, *last[side], counts[side]), stats[side])
        for side, pipe in pipes.items()
    }
    return Profile(
        **sides,
        ratio=_ratios(sides["baseline"], sides["reduced"], stats),
        spread={side: _spread(stats[side]) for side in pipes},
        energy_j={side: _energy(lvlm.device, variant(side)) for side in pipes},
        machine=machine(lvlm.device),
    )


def _energy(device: torch.device, run: Callable[[StageTimer], object]) -> float | None:
    """Joule of one run; the counter is too coarse for its stages."""
    if device.type != "cuda":
        return None

    def synchronised() -> None:
        timer = StageTimer(device)
        run(timer)
        timer.times()

    return hardware.energy(synchronised, index=device.index or 0)


def _with_medians(account: Ledger, stats: Mapping[str, StageStats]) -> Ledger:
    """The account of the last pass with the median times in place of its own."""

    def median(row: Stage) -> Stage:
        times = stats[row.stage]
        faster = (row.device_ms or 0) / times.device_ms.median
        return replace(
            row,
            device_ms=times.device_ms.median,
            host_ms=times.host_ms.median,
            peak_mib=times.peak_mib,
            mfu=None if row.mfu is None else row.mfu * faster,
            mbu=None if row.mbu is None else row.mbu * faster,
        )

    return replace(account, stages=[median(row) for row in account.stages])


def _ratios(
    baseline: Ledger, reduced: Ledger, stats: Mapping[str, Mapping[str, StageStats]]
) -> dict[str, float]:
    """Baseline over reduced: FLOPs from the ledgers, times as medians of what each run took."""

    def flops(side: Ledger, stages: Sequence[str] | None = None) -> int:
        return sum(r.flops or 0 for r in side.stages if stages is None or r.stage in stages)

    def times(stage: str) -> float:
        both = (stats[side][stage].device_ms.median for side in ("baseline", "reduced"))
        return next(both) / next(both)

    return {
        "prefill_ms": times(BEFORE_DECODING),
        "total_ms": times("total"),
        "flops": flops(baseline) / flops(reduced),
        "predicted": flops(baseline, PREFILL) / flops(reduced, PREFILL),
    }


def _spread(stats: Mapping[str, StageStats]) -> dict[str, dict[str, float]]:
    return {stage: asdict(times.device_ms) for stage, times in stats.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on: processor, device, threads and torch's version."""
    on_gpu = device.type == "cuda"
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "torch": torch.__version__,
    }


def _cpu_model() -> str:
    """The processor's name as Linux tells it, elsewhere as Python does."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
