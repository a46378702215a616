"""The rows of a job: what became of each item, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeGuard

from mmtok.errors import InputError
from mmtok.io.files import reason
from mmtok.io.image import MAX_PIXELS
from mmtok.io.video import MAX_FRAMES, Clip
from mmtok.options import check_values

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
                if not isinstance(row, dict) or type(row.get(name)) is not kind:
                    raise ValueError(f"no {name}")
            if good:
                _check_features(row)
            if not row["sources"] or not all(isinstance(s, str) for s in row["sources"]):
                raise ValueError("no sources")
        except (ValueError, RecursionError) as error:
            raise damaged(f"{path}, line {number}", reason(error)) from None
        rows.append(row)
    return rows


def _check_features(row: Row) -> None:
    """Refuse facts that no features could have, before anything is made of them.

    Raises:
        ValueError: with the name of the fact.
    """
    size, clip, grids = row.get("size"), row.get("clip"), row.get("grids")
    if not _counts(size, 1) or len(size) != 2 or size[0] * size[1] > MAX_PIXELS:
        raise ValueError("no size")
    if not isinstance(row.get("stacked"), bool):
        raise ValueError("no stacked")
    if not isinstance(grids, list) or not all(_counts(g, 1) and len(g) == 3 for g in grids):
        raise ValueError("no grids")
    for name, total in (("counts", "tokens_in"), ("kept_counts", "tokens_out")):
        found = row.get(name)
        if not _counts(found, 0) or len(found) != len(grids) or sum(found) != row[total]:
            raise ValueError(f"no {name} that fit grids and {total}")
    if any(kept > count for kept, count in zip(row["kept_counts"], row["counts"], strict=True)):
        raise ValueError("more tokens kept than there were")
    if clip is None:
        return
    names = {field.name for field in fields(Clip)} - {"frames"}
    if not isinstance(clip, dict) or clip.keys() != names:
        raise ValueError("no clip")
    check_values("clip", Clip, clip)
    if not _counts(clip["indices"], 0) or not 0 < len(clip["indices"]) <= MAX_FRAMES:
        raise ValueError("no clip with indices")
    if len(clip["timestamps_s"]) != len(clip["indices"]):
        raise ValueError("no clip with as many timestamps as indices")


def _counts(found: Any, low: int) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(n) is int and n >= low for n in found)


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
