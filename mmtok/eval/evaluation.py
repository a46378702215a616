"""A reducer on a benchmark, with the un-pruned model and random selection beside it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtok.errors import InputError
from mmtok.eval.base import Item, Task, check_items
from mmtok.eval.batches import plan_batches
from mmtok.eval.card import settings, summary
from mmtok.eval.damage import (
    check_comparable,
    check_costs,
    check_predictions,
    check_settings,
)
from mmtok.eval.files import is_file
from mmtok.eval.parsing import check_parser
from mmtok.eval.records import read_records
from mmtok.eval.runner import Progress, Run, cost_file, run
from mmtok.eval.scoring import paired, score, shared_questions

if TYPE_CHECKING:
    from mmtok.models.lvlm import LVLM
    from mmtok.pruning import Reducer

CONTRACT = ("accuracy", "precision", "recall", "f1", "yes_ratio")
"""Scores that every row has under these names, None where the task has none."""


@dataclass(frozen=True)
class Report:
    """Scores and costs of some variants on one task.

    Attributes:
        task: the task.
        parser: how answers were read.
        runs: one per variant, the one asked for first.
        rows: a dict per variant and split, under the names of `eval --json`.
        differences: paired, of each variant against the un-pruned model and of the first against
            random selection.
    """

    task: Task
    parser: str
    runs: list[Run]
    rows: list[dict[str, Any]]
    differences: list[dict[str, Any]]

    @property
    def failed(self) -> int:
        """Questions that failed, over all variants."""
        return sum(one.failed for one in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """{"task", "rows", "parser", "paired", "runs": cards, "failed", "notes"}, JSON-ready."""
        return {
            "task": self.task.name,
            "rows": self.rows,
            "parser": self.parser,
            "paired": self.differences,
            "runs": [card(one) for one in self.runs],
            "failed": self.failed,
            "notes": self.task.notes(self.runs[0].rows),
        }


def evaluate(
    lvlm: LVLM,
    task: Task,
    reduce: Any = None,
    *,
    out: Path | str = "eval_out",
    batch: int = 32,
    limit: int | None = None,
    baselines: bool = True,
    parser: str = "robust",
    seed: int = 0,
    draws: int = 1000,
    progress: Callable[[str], Progress] | None = None,
) -> Report:
    """Run a task, or go on with it, and score it.

    Args:
        lvlm: what `mmtok.load` returned.
        task: from `mmtok.eval.build`.
        reduce: a spec, a reducer, a list of them that apply in turn, or None.
        out: folder of the predictions; a run that is there under the same settings is resumed.
        batch: pictures in a forward pass; a video counts as its frames.
        limit: about so many questions, see `limited`.
        baselines: also run the un-pruned model and random selection at the same budget.
        parser: "robust", "strict" or "official".
        seed: of random selection and of the bootstrap.
        draws: of the bootstrap.
        progress: variant -> what is told of its progress.

    Raises:
        InputError: files are missing, or a reducer does not fit the model.
    """
    check_parser(parser)
    runs = evaluate_variants(
        lvlm,
        task,
        variants(reduce, baselines, seed),
        out=out,
        batch=batch,
        limit=limit,
        seed=seed,
        progress=progress,
    )
    return report(task, runs, parser=parser, seed=seed, draws=draws)


def evaluate_variants(
    lvlm: LVLM,
    task: Task,
    chosen: Sequence[Sequence[Reducer]],
    *,
    out: Path | str,
    batch: int,
    limit: int | None,
    seed: int,
    progress: Callable[[str], Progress] | None = None,
) -> list[Run]:
    """One run for each of the variants, which are lists of reducers; see `evaluate`."""
    from mmtok.pipeline import Pipeline

    items = limited(check_items(task.items()), limit)
    plan = plan_batches(items, batch, lvlm.config, task.frames)
    pipes = [Pipeline(lvlm, reducers) for reducers in chosen]
    shared = settings(lvlm, task, items, batch=batch, seed=seed)
    runs = []
    for pipe in pipes:
        under = shared | {"reduce": pipe.spec}
        told = progress(pipe.spec) if progress else None
        runs.append(run(pipe, task, plan, Path(out) / file_name(under), under, told))
    return runs


def variants(reduce: Any, baselines: bool, seed: int = 0) -> list[list[Reducer]]:
    """The reducers asked for, then those to compare with: none, and random at the same budget."""
    from mmtok.pruning import build, registry

    asked = build(reduce)
    found = [asked]
    if baselines and asked:
        found.append([])
        keep = common_keep([reducer.keep for reducer in asked])
        chance = registry.make("random", {"keep": keep, "seed": seed})
        if [chance] != asked:
            found.append([chance])
    return found


def common_keep(keeps: Sequence[int | float]) -> int | float:
    """The budget of reducers that apply in turn: shares multiply, also numbers before them."""
    count: int | None = None
    share = 1.0
    for keep in keeps:
        if isinstance(keep, int):
            count = keep if count is None else min(count, keep)
        elif count is None:
            share *= keep
        else:
            count = max(round(count * keep), 1)
    return share if count is None else count


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """The questions about media evenly spread over the benchmark: whole media, at least one, and no
    more than fit into `limit` questions.

    Raises:
        InputError: limit below 1.
    """
    if limit is None or limit >= len(items):
        return list(items)
    if limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    media = list(dict.fromkeys(item.medium for item in items))
    each = Counter(item.medium for item in items)
    wanted = math.ceil(limit * len(media) / len(items))
    while True:
        chosen = {media[i * len(media) // wanted] for i in range(wanted)}
        if wanted == 1 or sum(each[medium] for medium in chosen) <= limit:
            return [item for item in items if item.medium in chosen]
        wanted -= 1


def file_name(under: dict[str, Any]) -> str:
    """A name that differs wherever the settings do."""
    digest = hashlib.sha256(json.dumps(under, sort_keys=True).encode()).hexdigest()[:8]
    words = (under["task"], Path(under["model"]).name, under["reduce"])
    slug = "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", w).strip("-")[:60] for w in words)
    return f"{slug}_{digest}.jsonl"


def load_run(file: Path | str) -> Run:
    """A run from its files, without running anything; costs are optional.

    Raises:
        InputError: not a file of predictions, or a damaged one.
    """
    path = Path(file)
    head, rows = read_records(path)
    check_settings(path, head["settings"])
    check_predictions(path, rows)
    costs = read_records(cost_file(path))[1] if is_file(cost_file(path)) else []
    check_costs(cost_file(path), costs)
    by_batch = {cost["batch"]: cost for cost in costs}
    return Run(path, head["settings"], rows, list(by_batch.values()))


def report(
    task: Task, runs: Sequence[Run], *, parser: str = "robust", seed: int = 0, draws: int = 1000
) -> Report:
    """Score runs of one task side by side.

    Args:
        task: the task.
        runs: the one asked for first; those with `reduce` "none" and "random..." are baselines.
        parser: how answers are read.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Raises:
        InputError: a run is empty, or answers a question twice; the runs are of several models,
            or two of them of one variant.
    """
    check_comparable(runs)
    rows = [line for one in runs for line in _lines(task, one, parser, seed, draws)]
    by_name = {one.settings["reduce"]: one for one in runs}
    base = by_name.get("none")
    chance = next((o for name, o in by_name.items() if name.startswith("random(")), None)
    pairs = [(one, base) for one in runs if base is not None and one is not base]
    if chance is not None and runs[0] not in (base, chance):
        pairs.append((runs[0], chance))
    differences = []
    for one, other in pairs:
        names: dict[str, Any] = {"reduce": one.settings["reduce"]}
        names["against"] = other.settings["reduce"]
        sides = shared_questions(one.rows, other.rows)
        names["partial"] = len(sides[0]) < max(len(one.rows), len(other.rows))
        if sides[0]:
            found = paired(task, *sides, parser=parser, draws=draws, seed=seed)
            differences += [names | line for line in found]
    return Report(task, parser, list(runs), rows, differences)


def _lines(task: Task, one: Run, parser: str, seed: int, draws: int) -> list[dict[str, Any]]:
    """Scores of one run, each with the cost of the questions in it; a run cut short is marked."""
    table = score(task, one.rows, parser=parser, draws=draws, seed=seed)
    asked = one.settings["questions"]
    for line in table:
        line |= {name: line.get(name) for name in CONTRACT}
        line["reduce"] = one.settings["reduce"]
        line["partial"] = len(one.rows) < asked
        parts = set(task.parts(line["split"]))
        inside = [row for row in one.rows if parts & set(task.groups(row))]
        cost = summary(inside, one.costs)
        line |= {name: cost[name] for name in ("visual_tokens", "prefill_flops", "flops", "ms")}
    return table


def card(one: Run) -> dict[str, Any]:
    """The run card: settings, cost, and how many questions failed."""
    cost = summary(one.rows, one.costs)
    rows = len(one.rows)
    return {"file": str(one.file), "answered": rows, "failed": one.failed} | one.settings | cost
