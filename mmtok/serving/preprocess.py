"""Preprocess: media in, shards of pruned features out; nothing lost, nothing done twice.

Items are keyed by their bytes and the recipe, ordered by key and cut into shards; a shard is the
unit of work. What a shard holds depends on nothing but its items, so killed and resumed runs and
runs divided over workers give the same files. Files are read and decoded by threads while the
encoder works on the batch before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmtok.errors import InputError
from mmtok.io.video import Clip
from mmtok.models.reduction import Reduction
from mmtok.pruning import Reducer
from mmtok.serving.features import Features, decode, encode_batch
from mmtok.serving.recipe import Recipe
from mmtok.serving.shards import Row, open_folder, shard_rows, write_manifest, write_shard
from mmtok.serving.sources import Source

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtok.models.lvlm import LVLM

THREADS = 4
"""Threads that read, hash and decode."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """How the work is cut up; of no influence on what an item's key is.

    Attributes:
        shard_size: items of a shard.
        batch_size: pictures encoded at once; clips go one by one.
        shards: into how many parts the shards are divided ...
        index: ... and which of them is this run's.
        on_error: "skip" notes an unreadable item in the manifest, "fail" ends the run.
    """

    shard_size: int = 64
    batch_size: int = 16
    shards: int = 1
    index: int = 0
    on_error: Literal["skip", "fail"] = "skip"


@dataclass(kw_only=True)
class Summary:
    """What a run did, and what the folder holds now.

    Attributes:
        done: items this run encoded.
        skipped: items that an earlier run had dealt with.
        failed: items in the manifest without features, from whichever run.
        shards: shards this run wrote.
        content_hash: of everything in the manifest.
        errors: what this run could not read, and why.
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0
    shards: int = 0
    content_hash: str = ""
    errors: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Item:
    """One piece of work: sources with the same bytes, and why they cannot be read if so."""

    key: str
    digest: str | None
    sources: tuple[Source, ...]
    error: str | None = None


def preprocess(
    sources: Sequence[Source],
    out: Path,
    lvlm: LVLM,
    reducers: Sequence[Reducer],
    recipe: Recipe,
    job: Job,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Run a job, or what is left of it.

    Args:
        sources: from `list_sources`.
        out: the folder to write.
        lvlm: the model that the recipe names.
        reducers: those that the recipe names.
        recipe: what to make of each item.
        job: how to divide the work.
        progress: told how many items are done, of how many.

    Raises:
        InputError: the folder holds another recipe's results; an item failed and `on_error` says
            so.
    """
    open_folder(out, recipe)
    items = gather(sources, recipe)
    chunks = [items[i : i + job.shard_size] for i in range(0, len(items), job.shard_size)]
    mine = chunks[job.index :: job.shards]
    ready = {row["key"] for row in shard_rows(out)}
    pending = [[item for item in chunk if item.key not in ready] for chunk in mine]
    total = sum(map(len, pending))
    summary = Summary(skipped=sum(map(len, mine)) - total)
    reduction = Reduction(lvlm.model, reducers)
    for chunk in filter(None, pending):
        made, rows = encode_chunk(chunk, lvlm, reduction, recipe, job)
        write_shard(out, made, rows)
        summary.shards += 1
        summary.done += len(made)
        summary.errors += [f"{row['sources'][0]}: {row['error']}" for row in rows if row["error"]]
        progress(summary.done + len(summary.errors), total)
    summary.content_hash, summary.failed = write_manifest(out)
    return summary


def gather(sources: Sequence[Source], recipe: Recipe) -> list[Item]:
    """Hash all sources; those with the same bytes become one item. Ordered by key."""
    found: dict[str, tuple[str | None, list[Source], str | None]] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for source, (digest, error) in zip(sources, pool.map(_digest, sources), strict=True):
            name = f"unreadable:{source.name}" if digest is None else digest
            key = recipe.key(hashlib.sha256(name.encode()).hexdigest() if error else name)
            found.setdefault(key, (digest, [], error))[1].append(source)
    return [
        Item(key, digest, tuple(same), error)
        for key, (digest, same, error) in sorted(found.items())
    ]


def _digest(source: Source) -> tuple[str | None, str | None]:
    try:
        return source.digest(), None
    except InputError as error:
        return None, str(error)


def encode_chunk(
    chunk: Sequence[Item], lvlm: LVLM, reduction: Reduction, recipe: Recipe, job: Job
) -> tuple[dict[str, Features], list[Row]]:
    """Features of a shard's items, and a row for each of them, failed ones included."""
    made: dict[str, Features] = {}
    errors: dict[str, str] = {}
    for batch in _decoded(chunk, recipe, job, errors):
        keys, media = [item.key for item, _ in batch], [picture for _, picture in batch]
        try:
            made |= dict(zip(keys, encode_batch(lvlm, reduction, media, recipe), strict=True))
        except InputError:  # which of them it was, one by one
            for key, picture in zip(keys, media, strict=True):
                try:
                    made |= {key: encode_batch(lvlm, reduction, [picture], recipe)[0]}
                except InputError as error:
                    errors[key] = str(error)
    if errors and job.on_error == "fail":
        raise InputError(next(iter(errors.values())))
    return made, [_row(item, made.get(item.key), errors.get(item.key)) for item in chunk]


def _decoded(
    chunk: Sequence[Item], recipe: Recipe, job: Job, errors: dict[str, str]
) -> Iterator[list[tuple[Item, Image | Clip]]]:
    """Batches of decoded pictures, and clips one by one; the next batch is decoded meanwhile."""
    pieces = [chunk[i : i + job.batch_size] for i in range(0, len(chunk), job.batch_size)]
    with ThreadPoolExecutor(THREADS) as pool:

        def submit(piece: Sequence[Item]) -> list[tuple[Item, Future[Image | Clip]]]:
            readable = [item for item in piece if item.error is None]
            errors.update({item.key: item.error for item in piece if item.error is not None})
            return [(item, pool.submit(decode, item.sources[0], recipe)) for item in readable]

        waiting = submit(pieces[0]) if pieces else []
        for number in range(len(pieces)):
            current = waiting
            waiting = submit(pieces[number + 1]) if number + 1 < len(pieces) else []
            ready: list[tuple[Item, Image | Clip]] = []
            for item, future in current:
                try:
                    ready.append((item, future.result()))
                except InputError as error:
                    errors[item.key] = str(error)
            stills = [pair for pair in ready if not isinstance(pair[1], Clip)]
            yield from ([pair] for pair in ready if isinstance(pair[1], Clip))
            if stills:
                yield stills


def _row(item: Item, made: Features | None, error: str | None) -> Row:
    row: Row = {
        "key": item.key,
        "sources": [source.name for source in item.sources],
        "sha256": item.digest,
        "status": "ok" if made is not None else "error",
        "error": error,
    }
    if made is not None:
        tokens = {"tokens_in": sum(made.counts), "tokens_out": sum(made.kept_counts)}
        row |= made.facts() | tokens
    return row
