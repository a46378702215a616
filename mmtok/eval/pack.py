"""The held-out pack of scenes and clips that ships with mmtok, as items."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from mmtok.eval.base import Item, Task
from mmtok.eval.files import read_json_lines

PACK = Path(str(files("mmtok.eval"))) / "methods" / "data" / "scenes"


def pack_items(task: Task, kind: str) -> list[Item]:
    """Every question about media of one kind, "image" or "video".

    Args:
        task: `questions` and `media` may name another pack of the same layout.
        kind: which half of the pack.

    Raises:
        InputError: no such pack.
    """
    folder = task.media or PACK
    rows = read_json_lines(task.questions or folder / "questions.jsonl")
    return [_item(task, folder, row, kind) for row in rows if kind in row]


def _item(task: Task, folder: Path, row: dict[str, Any], kind: str) -> Item:
    options = tuple(row.get("options", ()))
    if options:
        answer = "choice"
    else:
        answer = "yesno" if row["label"] in ("yes", "no") else "word"
    split = row["split"]
    if split == "clip":
        split = "choice" if options else "open"
    return Item(
        split=split,
        question_id=str(row["question_id"]),
        text=row["text"] + task.suffix,
        medium=row[kind],
        file=folder / row[kind],
        kind=kind,
        answer=answer,
        label=row["label"],
        options=options,
    )
