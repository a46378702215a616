"""Verify: re-read everything a job wrote and check it against its manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mmtok.errors import InputError
from mmtok.serving.recipe import load_recipe
from mmtok.serving.rows import Row, by_key, read_rows
from mmtok.serving.shards import is_lost, manifest_path, read_item, row_files


def verify(out: Path) -> list[str]:
    """Everything that is wrong with a job's folder, a line each; nothing if all is well.

    Raises:
        InputError: there is no manifest.
    """
    manifest, problems = manifest_path(out), list[str]()
    try:
        load_recipe(out)
    except InputError as error:
        problems.append(str(error))
    rows = _rows(manifest, problems)
    problems += [
        f"{key[:12]}: {count} rows, expected one"
        for key, count in Counter(row["key"] for row in rows).items()
        if count > 1
    ]
    written = by_key(row for path in row_files(out) for row in _rows(path, problems))
    listed = {row["key"] for row in rows}
    problems += [
        f"{key[:12]}: in shard {row.get('shard')}, not in the manifest"
        for key, row in written.items()
        if key not in listed
    ]
    problems += [
        f"{row['key'][:12]}: its row in the manifest is not the one of its shard"
        for row in rows
        if row["key"] in written and not _same(row, written[row["key"]])
    ]
    problems += _lost(out, rows, written)
    for row in rows:
        if row["status"] == "ok" and not is_lost(out, row):
            problems += _item(out, row)
    known = {str(row.get("shard")) for row in rows}
    problems += [
        f"{path.name}: no item of the manifest is in it"
        for path in sorted((out / "shards").glob("[!.]*"))
        if path.suffix != ".jsonl" and path.name not in known
    ]
    return problems


def _rows(path: Path, problems: list[str]) -> list[Row]:
    """A file's rows; none, and one more problem, if they are damaged."""
    try:
        return read_rows(path)
    except InputError as error:
        problems.append(str(error))
        return []


def _lost(out: Path, rows: list[Row], written: Mapping[str, Row]) -> list[str]:
    """A line for each file that is gone, however many items were in it."""
    tensors = Counter(row["shard"] for row in rows if is_lost(out, row))
    lines = Counter(
        str(row.get("shard") or "unreadable items")
        for row in rows
        if row["key"] not in written and not is_lost(out, row)
    )
    return [
        f"{shard}: gone, with the tensors of {count} items; run the same `mmtok preprocess` again"
        for shard, count in tensors.items()
    ] + [
        f"{shard}: the rows of {count} items are gone; run the same `mmtok preprocess` again"
        for shard, count in lines.items()
    ]


def _same(row: Row, written: Row) -> bool:
    """Whether the manifest says what the shard does; sources may have come since then."""
    added = set(written["sources"]) <= set(row["sources"])
    return added and row == written | {"sources": row["sources"]}


def _item(out: Path, row: Row) -> list[str]:
    try:
        tensors = read_item(out, row)
    except InputError as error:
        return [str(error)]
    if missing := {"features", "kept", "position"} - tensors.keys():
        return [f"{row['key'][:12]} ({row['sources'][0]}): no {', '.join(sorted(missing))}"]
    wrong = []
    if not bool(tensors["features"].isfinite().all()):
        wrong.append("NaN or infinite features")
    sizes = {len(tensors[name]) for name in ("features", "kept", "position")}
    if sizes != {row["tokens_out"]}:
        wrong.append(f"other than {row['tokens_out']} tokens")
    return [f"{row['key'][:12]} ({row['sources'][0]}): {what}" for what in wrong]
