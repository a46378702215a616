"""The held-out pack of scenes and clips that ships with mmtok, as items."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from mmtok.eval.base import Item, Task
from mmtok.eval.files import field, read_json_lines, texts

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
    file = task.questions or folder / "questions.jsonl"
    rows = enumerate(read_json_lines(file), 1)
    return [
        _item(task, folder, row, kind, f"{file}, question {number}")
        for number, row in rows
        if kind in row
    ]


def _item(task: Task, folder: Path, row: dict[str, Any], kind: str, where: str) -> Item:
    options = tuple(texts(row, "options", where))
    label = str(field(row, "label", where))
    medium = str(field(row, kind, where))
    if options:
        answer = "choice"
    else:
        answer = "yesno" if label in ("yes", "no") else "word"
    split = str(field(row, "split", where))
    if split == "clip":
        split = "choice" if options else "open"
    return Item(
        split=split,
        question_id=str(field(row, "question_id", where)),
        text=str(field(row, "text", where)) + task.suffix,
        medium=medium,
        file=folder / medium,
        kind=kind,
        answer=answer,
        label=label,
        options=options,
    )
