"""From predictions to scores: a row per split, with intervals, and paired differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmtok.errors import InputError
from mmtok.eval.base import Row, Task
from mmtok.eval.bootstrap import DRAWS, interval, resample, weights
from mmtok.eval.parsing import PARSERS, check_parser

Array = NDArray[np.float64]
DETAIL = ": "
"""In the name of a group that is a finer view, such as "domain: Sports"."""
Draws = dict[str, dict[str, Array]]
"""Group -> score -> its value on the data and on every draw."""


def score(
    task: Task,
    rows: Sequence[Row],
    *,
    parser: str = "robust",
    draws: int = DRAWS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Scores of a whole set of predictions.

    Args:
        task: whose predictions they are.
        rows: one per question: `split`, `question_id`, `medium`, `label`, `answer_kind`, and
            `answer` or `error`.
        parser: how answers are read: "robust", "strict" or "official".
        draws: of the bootstrap over media; 0 for none.
        seed: of the draws.

    Returns:
        One dict per split, then the task's summaries ("mean", "pooled"): n, the task's scores, 95%
        intervals under `<score>_ci`, `unreadable`, `differ` (answers that the parsers do not
        read alike), `failed`, and the first score by each parser under `by_parser`.

    Raises:
        InputError: no rows, a question twice, or an unknown parser.
    """
    check_parser(parser)
    check_rows(rows)
    chosen = resampled(task, rows, parser, draws, seed)
    others = {p: chosen if p == parser else resampled(task, rows, p, 0, seed) for p in PARSERS}
    members = _groups(task, rows)
    table = []
    for group, values in chosen.items():
        first = next(iter(values))
        inside = [row for name in task.parts(group) for row in members.get(name, ())]
        line: dict[str, Any] = {"split": group, "n": len(inside)}
        line |= {name: _number(value[0]) for name, value in values.items()}
        line |= {f"{name}_ci": interval(value) for name, value in values.items() if draws}
        line |= _readability(task, inside, parser)
        line["by_parser"] = {p: _number(others[p][group][first][0]) for p in PARSERS}
        table.append(line)
    return table


def paired(
    task: Task,
    rows: Sequence[Row],
    base: Sequence[Row],
    *,
    parser: str = "robust",
    draws: int = DRAWS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Differences rows - base on the same questions, the same media drawn for both.

    Returns:
        Per split one dict: `split`, and each score's difference with its 95% interval.

    Raises:
        InputError: the two do not answer the same questions.
    """
    if {_key(row) for row in rows} != {_key(row) for row in base}:
        raise InputError("a paired difference needs the same questions on both sides")
    one, two = (resampled(task, side, parser, draws, seed) for side in (rows, base))
    table = []
    for group, values in one.items():
        line: dict[str, Any] = {"split": group}
        for name, value in values.items():
            apart = value - two[group][name]
            line |= {name: _number(apart[0]), f"{name}_ci": interval(apart)}
        table.append(line)
    return table


def shared_questions(
    rows: Sequence[Row], others: Sequence[Row]
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Both sides without the questions that the other, cut short, does not answer."""
    keys = {_key(row) for row in rows} & {_key(row) for row in others}
    one, two = ([row for row in side if _key(row) in keys] for side in (rows, others))
    return one, two


def check_rows(rows: Sequence[Row]) -> None:
    """Refuse nothing at all, and questions answered twice.

    Raises:
        InputError: either.
    """
    if not rows:
        raise InputError("there are no predictions to score")
    seen = set()
    for row in rows:
        if _key(row) in seen:
            raise InputError(f"question {row['question_id']} of {row['split']!r} is there twice")
        seen.add(_key(row))


def resampled(task: Task, rows: Sequence[Row], parser: str, draws: int, seed: int) -> Draws:
    """Every score of every group, on the data and on each draw of media."""
    media = {name: i for i, name in enumerate(sorted({str(row["medium"]) for row in rows}))}
    drawn = weights(len(media), draws, seed)
    counts: dict[str, dict[str, Array]] = {}
    for group, members in _groups(task, rows).items():
        by_medium: dict[str, list[Row]] = defaultdict(list)
        for row in members:
            by_medium[str(row["medium"])].append(row)
        columns: dict[str, Array] = defaultdict(lambda: np.zeros(len(media)))
        for name, some in by_medium.items():
            for count, value in task.tally(some, parser).items():
                columns[count][media[name]] = value
        counts[group] = dict(columns)
    found: Draws = {g: resample(c, drawn, task.figures) for g, c in counts.items()}
    for name, (rule, parts) in task.summaries.items():
        there = [part for part in parts if part in counts]
        if rule == "pool" and len(there) > 1:
            names = counts[there[0]]
            summed = {k: np.sum([counts[part][k] for part in there], axis=0) for k in names}
            found[name] = resample(summed, drawn, task.figures)
        elif rule == "mean" and len(there) > 1:
            names = found[there[0]]
            found[name] = {k: np.mean([found[part][k] for part in there], axis=0) for k in names}
        elif rule == "sum" and there:
            total = np.sum([found[part][task.total] for part in there], axis=0)
            found[name] = {task.total: total}
    return found


def _groups(task: Task, rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        for name in task.groups(row):
            groups.setdefault(name, []).append(row)
    known = [part for _, parts in task.summaries.values() for part in parts]

    def order(name: str) -> tuple[int, str]:
        return (known.index(name) if name in known else len(known) + (DETAIL in name), name)

    return {name: groups[name] for name in sorted(groups, key=order)}


def _readability(task: Task, rows: Sequence[Row], parser: str) -> dict[str, int]:
    unread = differ = 0
    for row in rows:
        if "error" in row:
            continue
        verdicts = {p: task.read(row, p) for p in PARSERS}
        differ += len(set(verdicts.values())) > 1
        readers = {parser, "robust" if parser == "official" else parser}
        unread += any(verdicts[reader] is None for reader in readers)
    return {
        "unreadable": unread,
        "differ": differ,
        "failed": sum("error" in row for row in rows),
    }


def _key(row: Row) -> tuple[str, str]:
    return str(row["split"]), str(row["question_id"])


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
