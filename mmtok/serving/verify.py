"""Verify: re-read everything a job wrote and check it against its manifest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mmtok.errors import InputError
from mmtok.serving.recipe import load_recipe
from mmtok.serving.shards import Row, finished, manifest_path, read_item, read_rows, row_files


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
    shards = [_rows(path, problems) for path in row_files(out)]
    written = {row["key"]: row for rows in shards if finished(out, rows) for row in rows}
    listed = {row["key"] for row in rows}
    problems += [
        f"{key[:12]}: in shard {row.get('shard')}, not in the manifest"
        for key, row in written.items()
        if key not in listed
    ]
    problems += [
        f"{row['key'][:12]}: its row in the manifest is not the one of its shard"
        for row in rows
        if not _same(row, written.get(row["key"]))
    ]
    for row in rows:
        if row["status"] == "ok":
            problems += _item(out, row)
    known = {row.get("shard") for row in rows}
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


def _same(row: Row, written: Row | None) -> bool:
    """Whether the manifest says what the shard does; sources may have come since then."""
    if written is None:
        return False
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
