"""What earlier runs have left in a folder: which items are done, and which rows have to go."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from mmtok.errors import InputError
from mmtok.io.files import reason
from mmtok.serving.recipe import Recipe
from mmtok.serving.rows import Row
from mmtok.serving.shards import is_lost, shard_rows, write_rows
from mmtok.serving.sources import Source
from mmtok.serving.work import Digest, Item, Job, cut, gather


def open_items(
    sources: Sequence[Source], hashed: Sequence[Digest], out: Path, recipe: Recipe, job: Job
) -> tuple[list[Item], list[list[Item]], int]:
    """All items, the shards that this run has to make, and how many of its items are done.

    Items are cut into shards before anything is left out, so that a resumed run cuts as the first
    one did.

    Raises:
        InputError: rows are damaged, or cannot be taken away.
    """
    items = gather(sources, hashed, recipe)
    mine = cut(items, job)
    ready = done_keys(
        out, items, {item.key for chunk in mine for item in chunk}, retry=job.retry_failed
    )
    pending = [[item for item in chunk if item.key not in ready] for chunk in mine]
    skipped = sum(map(len, mine)) - sum(map(len, pending))
    return items, [chunk for chunk in pending if chunk], skipped


def done_keys(
    out: Path, items: Collection[Item], mine: Collection[str], *, retry: bool = False
) -> set[str]:
    """The items that are done, once the rows that are true no more are taken away.

    Those are the rows of a shard whose tensors are lost, if this run makes all of its items again
    (perhaps cut into other shards: rows left from before would be there twice), and failures of
    sources that have other bytes by now.

    Args:
        out: the job's folder.
        items: all that were asked for.
        mine: keys of those among them that this run makes unless they are done.
        retry: whether failed items are to be made again.

    Raises:
        InputError: rows are damaged, or cannot be taken away.
    """
    keys = {item.key for item in items}
    names = {source.name for item in items for source in item.sources}
    good, bad, lost = set[str](), set[str](), set[str]()
    for path, rows in shard_rows(out):
        left = [row for row in rows if not _outdated(row, keys, names)]
        if any(is_lost(out, row) for row in rows):
            held = {row["key"] for row in rows if row["status"] == "ok"}
            if held <= set(mine):
                left = [row for row in left if row["key"] not in mine]
                lost |= held
            else:  # another run's, which might be taking it away just now
                left = rows
        if len(left) < len(rows):
            _keep(path, left)
        for row in left:
            (good if row["status"] == "ok" else bad).add(row["key"])
    return good | (set() if retry else bad - lost)


def _outdated(row: Row, keys: Collection[str], names: Collection[str]) -> bool:
    """Whether a failure is of sources that all are here with other bytes."""
    return row["status"] != "ok" and row["key"] not in keys and set(row["sources"]) <= set(names)


def _keep(path: Path, rows: list[Row]) -> None:
    """Leave these rows alone in a file; no file without any."""
    if rows:
        write_rows(path, rows)
        return
    try:
        os.unlink(path)
    except FileNotFoundError:  # another worker was faster
        pass
    except OSError as error:
        raise InputError(f"{path}: cannot be removed ({reason(error)})") from None
