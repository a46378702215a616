"""The ledger: one row per stage of a run, what it read and wrote and what it cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mmtok.table import render

STAGES = (
    *("source", "encode", "reduce.score", "reduce.select"),
    *("prefill", "decode", "decode.contrast"),
)
AGREEMENT = 0.01
"""Counted and analytic FLOPs further apart than this share are reported under the table."""


@dataclass(frozen=True)
class Stage:
    """One row. A number that was not measured, or does not exist here, is None, never 0.

    Attributes:
        stage: name, one of STAGES in a pipeline.
        tokens_in: tokens the stage read.
        tokens_out: tokens the stage handed on.
        flops: counted floating point operations (1 multiply-accumulate = 2; matrix products,
            convolutions, attention products).
        flops_analytic: the same from closed forms.
        device_ms: milliseconds on the device (equal to host_ms on CPU).
        host_ms: milliseconds on the host clock.
        peak_mib: peak memory while the stage ran, MiB.
        kv_bytes: bytes in the KV cache when the stage ended.
        mfu: share of the device's peak FLOP/s that was used, 0 to 1.
        mbu: share of the device's peak memory bandwidth that was used, 0 to 1.
        energy_j: energy, joule.
    """

    stage: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    flops: int | None = None
    flops_analytic: int | None = None
    device_ms: float | None = None
    host_ms: float | None = None
    peak_mib: float | None = None
    kv_bytes: int | None = None
    mfu: float | None = None
    mbu: float | None = None
    energy_j: float | None = None


@dataclass(frozen=True)
class Ledger:
    """The account of one run.

    Attributes:
        stages: rows in the order the stages ran.
        uncounted: operations the FLOP counter has no formula for, and how often each ran.
        meta: model, method, device, dtype and the like, as plain values.
    """

    stages: list[Stage]
    uncounted: dict[str, int] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> Stage:
        """FLOPs, times and energy added up; peak memory and KV bytes at their largest.

        A stage without a figure adds nothing; a figure no stage has stays None. Tokens and
        utilisation have no meaningful total and are None.
        """

        def fold(rule: Callable[[list[Any]], Any], name: str) -> Any:
            known = [v for s in self.stages if (v := getattr(s, name)) is not None]
            return rule(known) if known else None

        added = ("flops", "flops_analytic", "device_ms", "host_ms", "energy_j")
        largest = ("peak_mib", "kv_bytes")
        return Stage(
            "total",
            **{name: fold(sum, name) for name in added},
            **{name: fold(max, name) for name in largest},
        )

    def to_dict(self) -> dict[str, Any]:
        """{"stages": [...], "total": {...}, "uncounted": {...}, "meta": {...}}, JSON-ready."""
        return {
            "stages": [asdict(s) for s in self.stages],
            "total": asdict(self.total),
            "uncounted": dict(self.uncounted),
            "meta": dict(self.meta),
        }

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ledger:
        """The ledger whose `to_dict` gave `data`; the total is worked out anew."""
        return cls(
            stages=[Stage(**row) for row in data["stages"]],
            uncounted=dict(data.get("uncounted", {})),
            meta=dict(data.get("meta", {})),
        )

    def table(self) -> str:
        """The ledger as plain text: a line per stage and the total; empty columns are left out."""
        rows = [*self.stages, self.total]
        columns = [c for c in _COLUMNS if any(getattr(s, c[0]) is not None for s in self.stages)]
        lines = [["stage", *(title for _, title, _ in columns)]]
        for s in rows:
            cells = [(getattr(s, name), show) for name, _, show in columns]
            lines.append([s.stage, *("" if v is None else show(v) for v, show in cells)])
        return render(lines, total=True) + self._notes()

    def _notes(self) -> str:
        notes = []
        for s in self.stages:
            if s.flops and s.flops_analytic is not None:
                apart = s.flops_analytic / s.flops - 1
                if abs(apart) > AGREEMENT:
                    notes.append(f"{s.stage}: analytic FLOPs are {apart:+.1%} off the counted ones")
        if self.uncounted:
            most = sorted(self.uncounted.items(), key=lambda item: -item[1])
            notes.append("not counted as FLOPs: " + ", ".join(f"{op} x{n}" for op, n in most))
        if places := self.meta.get("positions"):
            notes.append(
                f"warning: {places['read']} positions, but the model knows {places['known']}: "
                "its answer means little; ask for fewer frames, smaller pictures or a shorter text"
            )
        return "".join(f"{note}\n" for note in notes)


def si(value: float, unit: str = "") -> str:
    """A number with three significant digits and its SI prefix: 9.08e12 -> "9.08 T"."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def _ms(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


_COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("tokens_in", "tokens in", str),
    ("tokens_out", "tokens out", str),
    ("flops", "FLOPs", si),
    ("flops_analytic", "analytic", si),
    ("device_ms", "device ms", _ms),
    ("host_ms", "host ms", _ms),
    ("peak_mib", "peak MiB", "{:.0f}".format),
    ("kv_bytes", "KV bytes", "{:,}".format),
    ("mfu", "MFU", _percent),
    ("mbu", "MBU", _percent),
    ("energy_j", "J", "{:.2f}".format),
)
