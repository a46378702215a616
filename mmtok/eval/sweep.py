"""Methods at several budgets on several tasks, always beside the un-pruned model and random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtok.accounting.ledger import si
from mmtok.errors import InputError
from mmtok.eval.base import Task
from mmtok.eval.chart import front
from mmtok.eval.evaluation import Report, common_keep, evaluate_variants, report
from mmtok.eval.runner import Progress, Run
from mmtok.eval.scoring import paired, shared_questions
from mmtok.eval.table import number, score_names, short
from mmtok.registry import parse_spec

if TYPE_CHECKING:
    from mmtok.models.lvlm import LVLM
    from mmtok.pruning import Reducer

COSTS = ("visual_tokens", "flops", "ms")
KEEPS: tuple[int | float, ...] = (0.5, 0.25, 0.1)
Keep = int | float
Difference = tuple[float, tuple[float, float] | None]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One variant on one task.

    Attributes:
        reduce: its full spec, "none" for the un-pruned model.
        series: its spec without the budget, under which it is drawn.
        keep: the budget.
        value: the task's main score, None where it does not exist.
        interval: of the score, 95%.
        visual_tokens: kept per question, like the costs a mean.
        flops: of all stages.
        ms: of all stages but reading files.
        minus_none: paired difference to the un-pruned model with its interval.
        minus_random: the same to random selection at the same budget.
        unreadable: answers.
        failed: questions.
        front: the costs for which no other variant is better.
    """

    reduce: str
    series: str
    keep: Keep | None
    value: float | None
    interval: tuple[float, float] | None
    visual_tokens: float | None
    flops: float | None
    ms: float | None
    minus_none: Difference | None
    minus_random: Difference | None
    unreadable: int
    failed: int
    front: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskSweep:
    """All variants on one task.

    Attributes:
        report: scores of every split; the un-pruned model first.
        split: the row of the table that is the task's headline.
        score: its main score.
        points: one per variant, in the order of the report's runs.
    """

    report: Report
    split: str
    score: str
    points: list[Point]

    def to_dict(self) -> dict[str, Any]:
        """What `Report.to_dict` gives, with "split", "score" and "points"."""
        facts = self.report.to_dict() | {"split": self.split, "score": self.score}
        return facts | {"points": [asdict(point) for point in self.points]}


@dataclass(frozen=True)
class Variant:
    """Reducers that apply in turn, and where they belong in a chart."""

    reducers: list[Reducer]
    series: str
    keep: Keep | None

    @property
    def spec(self) -> str:
        """As in `Pipeline.spec`."""
        return " + ".join(reducer.spec for reducer in self.reducers) or "none"


def expand(reduce: Sequence[str], keeps: Sequence[Keep] = KEEPS, seed: int = 0) -> list[Variant]:
    """The un-pruned model, random at every budget, then every method at every budget.

    Args:
        reduce: specs. One without `keep` is tried at all budgets, one with it at its own; a chain
            "a(keep=0.5) + b(keep=0.2)" needs them.
        keeps: the budgets, numbers of tokens or shares.
        seed: of random selection.

    Raises:
        InputError: a spec cannot be read, or a chain leaves its budgets open.
    """
    from mmtok.pruning import registry

    methods = [one for spec in reduce for one in _at_budgets(spec, keeps)]
    budgets = {repr(one.keep): one.keep for one in methods if one.keep is not None}
    chance = [
        Variant([registry.make("random", {"keep": keep, "seed": seed})], "random", keep)
        for keep in list(budgets.values()) or keeps
    ]
    found: dict[str, Variant] = {}
    for one in [Variant([], "none", None), *chance, *methods]:
        found.setdefault(one.spec, one)
    return list(found.values())


def _at_budgets(spec: str, keeps: Sequence[Keep]) -> list[Variant]:
    from mmtok.pruning import build, registry

    parts = [part.strip() for part in spec.split(" + ")]
    parsed = [parse_spec(part) for part in parts]
    fixed = ["keep" in arguments for _, arguments in parsed]
    if all(fixed):
        reducers = build(parts)
        series = " + ".join(_without_keep(*one) for one in parsed)
        return [Variant(reducers, series, common_keep([r.keep for r in reducers]))]
    if len(parts) > 1:
        raise InputError(f"--reduce {spec!r}: give every part of a chain its own keep")
    ((name, arguments),) = parsed
    made = [registry.make(name, {"keep": keep} | arguments) for keep in keeps]
    return [Variant([one], _without_keep(name, arguments), one.keep) for one in made]


def _without_keep(name: str, arguments: dict[str, Any]) -> str:
    rest = ", ".join(f"{k}={v!r}" for k, v in arguments.items() if k != "keep")
    return f"{name}({rest})" if rest else name


def sweep(
    lvlm: LVLM,
    tasks: Sequence[Task],
    variants: Sequence[Variant],
    *,
    out: Path | str = "eval_out",
    batch: int = 32,
    limit: int | None = None,
    parser: str = "robust",
    seed: int = 0,
    draws: int = 1000,
    progress: Callable[[str], Progress] | None = None,
) -> list[TaskSweep]:
    """Run every variant on every task, or go on with it, and set scores against costs.

    Arguments and errors as in `mmtok.eval.evaluate`; `variants` come from `expand`.
    """
    found = []
    reducers = [variant.reducers for variant in variants]
    for task in tasks:
        runs = evaluate_variants(
            lvlm, task, reducers, out=out, batch=batch, limit=limit, seed=seed, progress=progress
        )
        made = report(task, runs, parser=parser, seed=seed, draws=draws)
        found.append(headline(made, variants, draws=draws, seed=seed))
    return found


def headline(
    made: Report, variants: Sequence[Variant], *, draws: int = 1000, seed: int = 0
) -> TaskSweep:
    """The main score of each variant with its costs, differences and place on the fronts."""
    first = [row for row in made.rows if row["reduce"] == made.runs[0].settings["reduce"]]
    splits = [row["split"] for row in first]
    split = next((name for name in made.task.summaries if name in splits), splits[0])
    rows = {row["reduce"]: row for row in made.rows if row["split"] == split}
    score = score_names([next(iter(rows.values()))])[0]
    runs = {one.settings["reduce"]: one for one in made.runs}
    # by its text, since keep=1 (a token) equals keep=1.0 (all) as a key
    chance = {repr(v.keep): runs[v.spec] for v in variants if v.series == "random"}
    against = {
        line["reduce"]: _difference(line, score)
        for line in made.differences
        if line["split"] == split and line["against"] == "none"
    }
    points = []
    for one in variants:
        row = rows[one.spec]
        minus = None
        if one.series != "random" and (other := chance.get(repr(one.keep))):
            minus = _minus(made, runs[one.spec], other, split, score, draws, seed)
        points.append(
            Point(
                reduce=one.spec,
                series=one.series,
                keep=one.keep,
                value=row[score],
                interval=row.get(f"{score}_ci"),
                **{name: row[name] for name in COSTS},
                minus_none=against.get(one.spec),
                minus_random=minus,
                unreadable=row["unreadable"],
                failed=runs[one.spec].failed,
            )
        )
    return TaskSweep(made, split, score, _with_fronts(points, made.task.lower_is_better))


def _minus(
    made: Report, one: Run, other: Run, split: str, score: str, draws: int, seed: int
) -> Difference | None:
    sides = shared_questions(one.rows, other.rows)
    if not sides[0]:
        return None
    lines = paired(made.task, *sides, parser=made.parser, draws=draws, seed=seed)
    return next((_difference(line, score) for line in lines if line["split"] == split), None)


def _difference(line: dict[str, Any], score: str) -> Difference | None:
    value = line.get(score)
    return None if value is None else (value, line.get(f"{score}_ci"))


def split_points(one: TaskSweep, split: str) -> list[Point]:
    """The points of another row of the table than the headline, without differences."""
    rows = {row["reduce"]: row for row in one.report.rows if row["split"] == split}
    score = score_names([next(iter(rows.values()))])[0]
    points = []
    for point in one.points:
        row = rows[point.reduce]
        new = {name: row[name] for name in COSTS} | {"unreadable": row["unreadable"]}
        new |= {"value": row[score], "interval": row.get(f"{score}_ci"), "failed": row["failed"]}
        points.append(replace(point, minus_none=None, minus_random=None, **new))
    return _with_fronts(points, one.report.task.lower_is_better)


def _with_fronts(points: Sequence[Point], lower_is_better: bool) -> list[Point]:
    sign = -1 if lower_is_better else 1
    best: dict[int, list[str]] = {}
    for cost in COSTS:
        known = [
            (i, getattr(point, cost), sign * point.value)
            for i, point in enumerate(points)
            if point.value is not None and getattr(point, cost) is not None
        ]
        for place in front([(spent, value) for _, spent, value in known]):
            best.setdefault(known[place][0], []).append(cost)
    return [replace(point, front=tuple(best.get(i, ()))) for i, point in enumerate(points)]


def sweep_lines(found: Sequence[TaskSweep]) -> list[list[str]]:
    """Header and one line per task and variant."""
    head = ["score", "reduce", "tokens", "FLOPs", "ms", "value (95%)", "- none", "- random"]
    lines = [[*head, "unreadable", "failed", "best for its"]]
    for one in found:
        name = f"{one.report.task.name}, {one.split} {one.score}"
        lines += [[name, *cells(point)] for point in one.points]
    return lines


def cells(point: Point) -> list[str]:
    """A point as text."""
    names = {"visual_tokens": "tokens", "flops": "FLOPs", "ms": "ms"}
    return [
        short(point.reduce),
        "" if point.visual_tokens is None else f"{point.visual_tokens:.1f}",
        "" if point.flops is None else si(point.flops),
        "" if point.ms is None else f"{point.ms:.1f}",
        number(point.value, point.interval),
        number(*point.minus_none, sign="+") if point.minus_none else "",
        number(*point.minus_random, sign="+") if point.minus_random else "",
        str(point.unreadable),
        str(point.failed),
        ", ".join(names[cost] for cost in point.front),
    ]
