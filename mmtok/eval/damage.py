"""What a file of predictions must hold before it is scored; files come from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtok.errors import InputError
from mmtok.eval.base import Row, Task

if TYPE_CHECKING:
    from mmtok.eval.runner import Run

_SETTINGS = {"task": str, "scoring": dict, "questions": int, "model": str, "reduce": str}
_ROW = {"split": str, "question_id": str, "medium": str, "answer_kind": str, "text": str}
_MAYBE = {"batch": int, "prompt": str, "options": list, "meta": dict}
_LABELS = {"yesno": str, "choice": str, "word": str, "caption": list}
_COST = {"batch": int, "prompts": int, "stages": dict}


def check_settings(path: Path, settings: Any) -> None:
    """Refuse a first line without what scores need.

    Raises:
        InputError: something is missing or of another type.
    """
    where = f"{path}, line 1, settings"
    if not isinstance(settings, dict):
        raise InputError(f"{where}: expected an object, got {str(settings)[:60]!r}")
    _check(settings, _SETTINGS, where)


def check_predictions(path: Path, rows: Sequence[Row]) -> None:
    """Refuse rows that are no answers of `mmtok eval`.

    Raises:
        InputError: something is missing or of another type; the message says where.
    """
    for number, row in enumerate(rows, 2):
        where = f"{path}, line {number}"
        if path.name.endswith(".cost.jsonl"):
            raise InputError(f"{path}: holds costs, not predictions")
        _check(row, _ROW | ({"error": str} if "error" in row else {"answer": str}), where)
        _check(row, {name: kind for name, kind in _MAYBE.items() if name in row}, where)
        if (kind := row["answer_kind"]) not in _LABELS:
            raise InputError(f"{where}: answer_kind {kind!r}, expected one of {', '.join(_LABELS)}")
        _check(row, {"label": _LABELS[kind]}, where)
        texts = [*row.get("options", ()), *(row["label"] if kind == "caption" else ())]
        tokens = row.get("visual_tokens", [0, 0])
        good = isinstance(tokens, list) and len(tokens) == 2
        if not good or not all(isinstance(count, int) for count in tokens):
            raise InputError(f"{where}: visual_tokens {tokens!r}, expected two numbers")
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{where}: options and labels must be strings")


def check_costs(path: Path, costs: Sequence[Row]) -> None:
    """Refuse costs that are not those of batches.

    Raises:
        InputError: something is missing or of another type.
    """
    for number, cost in enumerate(costs, 2):
        where = f"{path}, line {number}"
        _check(cost, _COST, where)
        for name, stage in cost["stages"].items():
            values = stage.values() if isinstance(stage, dict) else [None]
            if not all(isinstance(value, int | float) for value in values):
                raise InputError(f"{where}: stage {name!r} holds something else than numbers")


def check_fit(task: Task, run: Run) -> None:
    """Refuse answers of other kinds than the task reads, and other questions than were asked.

    Raises:
        InputError: either.
    """
    from mmtok.eval.card import ids_hash

    strange = {row["answer_kind"] for row in run.rows} - set(task.answers)
    if task.answers and strange:
        raise InputError(
            f"{run.file}: {task.name} cannot score answers of kind {', '.join(sorted(strange))}; "
            f"it reads {', '.join(task.answers)}"
        )
    asked, known = run.settings["questions"], run.settings.get("ids_hash")
    keys = {(row["split"], row["question_id"]) for row in run.rows}
    foreign = known is not None and len(keys) == asked and ids_hash(list(keys)) != known
    if len(keys) > asked or foreign:
        raise InputError(f"{run.file}: answers other questions than those that were asked")


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs that one table cannot tell apart.

    Raises:
        InputError: of several models, or two of one variant.
    """
    models = {str(run.settings.get("model")): run.settings.get("weights_hash") for run in runs}
    if len(models) > 1:
        raise InputError(f"files of several models ({', '.join(sorted(models))}): score them apart")
    seen: dict[str, Run] = {}
    for run in runs:
        name = run.settings["reduce"]
        if name in seen:
            raise InputError(
                f"{seen[name].file} and {run.file} are both of reduce {name!r}: score them apart"
            )
        seen[name] = run


def _check(row: Mapping[str, Any], wanted: Mapping[str, type], where: str) -> None:
    for name, kind in wanted.items():
        if not isinstance(value := row.get(name), kind):
            raise InputError(f"{where}: {name!r} is {str(value)[:60]!r}, expected {_WORDS[kind]}")


_WORDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
