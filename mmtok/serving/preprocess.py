"""Preprocess: media in, shards of pruned features out; nothing lost, nothing done twice.

Items are keyed by their bytes and the recipe, ordered by key and cut into shards; a shard is the
unit of work. What a shard holds depends on nothing but its items, so killed and resumed runs and
runs divided over workers give the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from mmtok.errors import InputError
from mmtok.pruning import Reducer
from mmtok.serving.recipe import Recipe
from mmtok.serving.resume import open_items
from mmtok.serving.rows import Row
from mmtok.serving.shards import open_folder, write_manifest, write_shard
from mmtok.serving.sources import Source
from mmtok.serving.stages import Encoder, Outcome, encode_chunks
from mmtok.serving.work import Item, Job, Summary, digests

if TYPE_CHECKING:
    from mmtok.models.lvlm import LVLM


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
    items, pending, skipped = open_items(sources, digests(sources), out, recipe, job)
    total, summary = sum(map(len, pending)), Summary(skipped=skipped)
    encoder = Encoder(lvlm, reducers, recipe)
    written: Future[str] | None = None
    with ThreadPoolExecutor(1) as writer:  # hashes and flushes one shard while the next is made
        for chunk, outcome in encode_chunks(pending, encoder, job):
            if written is not None:
                written.result()
            rows = shard_items(chunk, outcome, job)
            written = writer.submit(write_shard, out, outcome.made, rows, job.format)
            summary.add(rows)
            progress(summary.done + len(summary.errors), total)
        if written is not None:
            written.result()
    return finish(out, items, summary)


def shard_items(chunk: Sequence[Item], outcome: Outcome, job: Job) -> list[Row]:
    """A row for every item of a shard.

    Raises:
        InputError: an item failed, and the job says that this ends it.
    """
    if outcome.errors and job.on_error == "fail":
        raise InputError(next(iter(outcome.errors.values())))
    return [item.row(outcome.made.get(item.key), outcome.errors.get(item.key)) for item in chunk]


def finish(out: Path, items: Sequence[Item], summary: Summary) -> Summary:
    """Write the manifest and complete the summary of a run."""
    sources = {item.key: [source.name for source in item.sources] for item in items}
    summary.content_hash, bad = write_manifest(out, sources)
    summary.failed = len(bad & {item.key for item in items})
    return summary
