"""A report as plain text: scores with their cost, differences, and the run card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmtok.accounting.ledger import si
from mmtok.eval.evaluation import Report, card
from mmtok.eval.scoring import DETAIL

_COUNTS = ("unreadable", "differ", "failed")
_NOT_SCORES = (
    *("split", "n", "reduce", "partial", "by_parser", *_COUNTS),
    *("visual_tokens", "prefill_flops", "flops", "ms"),
)

_HIDDEN = ("file", "answered", "failed", "visual_tokens", "ms", "flops", "prefill_flops", "task")
_WITH_INTERVAL = ("accuracy", "f1", "score", "chair_s", "chair_i")


def score_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The scores that the rows of a report hold, in their order."""
    names = dict.fromkeys(name for row in rows for name in row)
    some = {name for row in rows for name, value in row.items() if value is not None}
    return [n for n in names if n in some and n not in _NOT_SCORES and not n.endswith("_ci")]


def score_lines(report: Report) -> list[list[str]]:
    """Header and one line per variant and split, finer groups apart."""
    names = score_names(report.rows)
    cost = ["tokens", "prefill FLOPs", "ms"]
    lines = [["reduce", "split", "n", *names, *_COUNTS, *cost]]
    for row in report.rows:
        if DETAIL in row["split"]:
            continue
        scores = [number(row.get(name), _interval(row, name)) for name in names]
        counts = [str(row[name]) for name in _COUNTS]
        mark = " (partial)" if row["partial"] else ""
        lines.append(
            [
                *(short(row["reduce"]), row["split"], f"{row['n']}{mark}", *scores, *counts),
                "" if row["visual_tokens"] is None else f"{row['visual_tokens']:.1f}",
                "" if row["prefill_flops"] is None else si(row["prefill_flops"]),
                "" if row["ms"] is None else f"{row['ms']:.1f}",
            ]
        )
    return lines


def difference_lines(report: Report) -> list[list[str]]:
    """Header and one line per pair of variants and split."""
    names = score_names(report.differences)
    names = [name for name in names if name != "against"]
    lines = [["reduce", "minus", "split", *names]]
    for row in report.differences:
        if DETAIL in row["split"]:
            continue
        scores = [number(row.get(name), _interval(row, name), "+") for name in names]
        lines.append([short(row["reduce"]), short(row["against"]), row["split"], *scores])
    return lines


def shared_facts(report: Report) -> list[str]:
    """What all run cards have in common, one fact a line."""
    first, *others = (_facts(card(one)) for one in report.runs)
    return [f"{k}: {v}" for k, v in first.items() if all(o.get(k) == v for o in others)]


def card_lines(report: Report) -> list[list[str]]:
    """What differs between the run cards, a line per fact."""
    cards = [_facts(card(one)) for one in report.runs]
    lines = [["per question", *(short(one.settings["reduce"]) for one in report.runs)]]
    for name in dict.fromkeys(name for one in cards for name in one):
        values = [one.get(name, "") for one in cards]
        if len(set(values)) > 1 and name != "reduce":
            lines.append([name, *values])
    return lines


def _facts(facts: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in facts.items():
        if name == "stages":
            for stage, spent in value.items():
                flops, ms = spent.get("flops_analytic"), spent.get("device_ms")
                work = "" if flops is None else si(flops, "FLOP")
                found[stage] = f"{work:>12}" + ("" if ms is None else f" {ms:8.2f} ms")
        elif name not in _HIDDEN and value not in ("", None, {}):
            found[name] = _plain(value)
    return found


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return si(value) if isinstance(value, float) else str(value)


def short(spec: str) -> str:
    """A spec for a table: without the arguments behind `keep` that say little."""
    parts = []
    for one in spec.split(" + "):
        name, _, rest = one.partition("(")
        first = rest.rstrip(")").split(", ")[0]
        parts.append(f"{name}({first})" if first else name)
    return " + ".join(parts)


def _interval(row: Mapping[str, Any], name: str) -> Sequence[float] | None:
    return row.get(f"{name}_ci") if name in _WITH_INTERVAL else None


def number(value: float | None, ci: Sequence[float] | None = None, sign: str = "") -> str:
    """A score with three digits, and its interval where there is one."""
    if value is None:
        return ""
    digits = 3 if abs(value) < 10 else 1
    text = f"{value:{sign}.{digits}f}"
    return text if ci is None else f"{text} ({ci[0]:{sign}.{digits}f}..{ci[1]:{sign}.{digits}f})"
