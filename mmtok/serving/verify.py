"""Verify: re-read everything a job wrote and check it against its manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mmtok.errors import InputError
from mmtok.serving.recipe import load_recipe
from mmtok.serving.rows import Row, by_key, read_rows
from mmtok.serving.shards import is_lost, manifest_path, read_items, row_files

_AGAIN = "run the same `mmtok preprocess` again"


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
    beside = {path.stem: _rows(path, problems) for path in row_files(out)}
    written = by_key(row for own in beside.values() for row in own or ())
    if rows is None:
        rows = list(written.values())
    problems += _differences(rows, written)
    unread = {stem for stem, own in beside.items() if own is None}
    problems += _lost(out, rows, written, unread)
    shards: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "ok" and not is_lost(out, row):
            shards.setdefault(row["shard"], []).append(row)
    for own in shards.values():
        problems += _shard(out, own)
    return problems


def leftovers(out: Path) -> list[str]:
    """Files of the shards' folder that no row names: a killed run's, or one's that is going on."""
    named = set[str]()
    for path in [*row_files(out), manifest_path(out)]:
        named |= {str(row.get("shard")) for row in _rows(path, []) or ()}
    files = sorted((out / "shards").glob("*"))
    return [path.name for path in files if path.name not in named and path.suffix != ".jsonl"]


def _rows(path: Path, problems: list[str]) -> list[Row] | None:
    """A file's rows; None, and one more problem, if they are damaged."""
    try:
        return read_rows(path)
    except InputError as error:
        problems.append(str(error))
        return None


def _differences(rows: list[Row], written: Mapping[str, Row]) -> list[str]:
    """Where the manifest does not say what the rows beside the shards do."""
    listed = Counter(row["key"] for row in rows)
    twice = [f"{key[:12]}: {n} rows, expected one" for key, n in listed.items() if n > 1]
    unlisted = [
        f"{key[:12]}: in shard {row.get('shard')}, not in the manifest"
        for key, row in written.items()
        if key not in listed
    ]
    other = [
        f"{row['key'][:12]}: its row in the manifest is not the one of its shard"
        for row in rows
        if row["key"] in written and not _same(row, written[row["key"]])
    ]
    return twice + unlisted + other


def _lost(out: Path, rows: list[Row], written: Mapping[str, Row], unread: set[str]) -> list[str]:
    """A line for each file that is gone, however many items were in it."""
    tensors = Counter(row["shard"] for row in rows if is_lost(out, row))
    lines = Counter(
        str(row.get("shard") or "unreadable items")
        for row in rows
        if row["key"] not in written and not is_lost(out, row)
    )
    return [
        f"{shard}: gone, with the tensors of {_items(count)}; {_AGAIN}"
        for shard, count in tensors.items()
    ] + [
        f"{shard}: the rows of {_items(count)} are gone; {_AGAIN}"
        for shard, count in lines.items()
        if Path(shard).stem not in unread
    ]


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def _same(row: Row, written: Row) -> bool:
    """Whether the manifest says what the shard does; sources may have come since then."""
    added = set(written["sources"]) <= set(row["sources"])
    return added and row == written | {"sources": row["sources"]}


def _shard(out: Path, rows: list[Row]) -> list[str]:
    """What is wrong with one file of tensors; a line for all of it where it is damaged."""
    found = []
    try:
        for row, tensors in read_items(out, rows):
            found += [
                f"{row['key'][:12]} ({row['sources'][0]}): {s}" for s in item_problems(row, tensors)
            ]
    except InputError as error:
        found.append(str(error))
    return found


def item_problems(row: Row, tensors: Mapping[str, Tensor]) -> list[str]:
    """Where the tensors of an item do not fit its row."""
    if missing := {"features", "kept", "position"} - tensors.keys():
        return [f"no {', '.join(sorted(missing))}"]
    wrong = []
    if not bool(tensors["features"].isfinite().all()):
        wrong.append("NaN or infinite features")
    sizes = {len(tensors[name]) for name in ("features", "kept", "position")}
    if sizes != {row["tokens_out"]}:
        wrong.append(f"other than {row['tokens_out']} tokens")
    return wrong
