"""The rows of a job: what became of each item, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmtok.errors import InputError
from mmtok.io.files import reason

Row = dict[str, Any]

_SAID = {"key": str, "sources": list, "status": str}
_SAID_OF_FEATURES = _SAID | {
    "shard": str,
    "tensors_sha256": str,
    "tokens_in": int,
    "tokens_out": int,
    "kind": str,
}


def damaged(what: str, why: str) -> InputError:
    """What is wrong with a file, and that it can be made again."""
    return InputError(
        f"{what}: damaged ({why}): delete it and run the same `mmtok preprocess` again"
    )


def read_rows(path: Path) -> list[Row]:
    """The rows in a file.

    Raises:
        InputError: it cannot be read, or a row lacks what every row has.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise damaged(str(path), reason(error)) from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            good = isinstance(row, dict) and row.get("status") == "ok"
            for name, kind in (_SAID_OF_FEATURES if good else _SAID).items():
                if not isinstance(row, dict) or not isinstance(row.get(name), kind):
                    raise ValueError(f"no {name}")
            if not row["sources"] or not all(isinstance(s, str) for s in row["sources"]):
                raise ValueError("no sources")
        except (ValueError, RecursionError) as error:
            raise damaged(f"{path}, line {number}", reason(error)) from None
        rows.append(row)
    return rows


def by_key(rows: Iterable[Row]) -> dict[str, Row]:
    """One row for each item: a failure counts no more once the item was made after all."""
    found: dict[str, Row] = {}
    for row in rows:
        if row["status"] == "ok" or row["key"] not in found:
            found[row["key"]] = row
    return found


def content_hash(rows: Iterable[Row]) -> str:
    """sha256 over key, status and tensors of rows ordered by key."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row['key']} {row['status']} {row.get('tensors_sha256')}\n".encode())
    return digest.hexdigest()
