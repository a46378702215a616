"""Verify: re-read everything a job wrote and check it against its manifest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mmtok.errors import InputError
from mmtok.serving.shards import Row, read_item, read_manifest, shard_rows


def verify(out: Path) -> list[str]:
    """Everything that is wrong with a job's folder, a line each; nothing if all is well.

    Raises:
        InputError: there is no manifest, or it cannot be read.
    """
    rows = read_manifest(out)
    problems = [
        f"{key[:12]}: {count} rows, expected one"
        for key, count in Counter(row["key"] for row in rows).items()
        if count > 1
    ]
    listed = {row["key"] for row in rows}
    problems += [
        f"{row['key'][:12]}: in shard {row.get('shard')}, not in the manifest"
        for row in shard_rows(out)
        if row["key"] not in listed
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


def _item(out: Path, row: Row) -> list[str]:
    try:
        tensors = read_item(out, row)
    except InputError as error:
        return [str(error)]
    wrong = []
    if not bool(tensors["features"].isfinite().all()):
        wrong.append("NaN or infinite features")
    if {len(tensors[name]) for name in ("features", "kept", "position")} != {row["tokens_out"]}:
        wrong.append(f"other than {row['tokens_out']} tokens")
    return [f"{row['key'][:12]} ({row['sources'][0]}): {what}" for what in wrong]
