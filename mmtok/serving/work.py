"""What there is to do: items with their keys, cut into shards, and the rows that tell of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmtok.errors import InputError
from mmtok.serving.features import Features
from mmtok.serving.recipe import Recipe
from mmtok.serving.rows import Row
from mmtok.serving.sources import Source

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
        format: of the shards, one of `mmtok.serving.formats.FORMATS`.
        retry_failed: make items again that failed in an earlier run.
    """

    shard_size: int = 64
    batch_size: int = 16
    shards: int = 1
    index: int = 0
    on_error: Literal["skip", "fail"] = "skip"
    format: str = "safetensors"
    retry_failed: bool = False


@dataclass(kw_only=True)
class Summary:
    """What a run did, and what the folder holds now.

    Attributes:
        done: items this run encoded.
        skipped: items that an earlier run had dealt with.
        failed: items without features among all that were asked for, from whichever run.
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

    def add(self, rows: Sequence[Row]) -> None:
        """Count one shard."""
        self.shards += 1
        self.done += sum(row["status"] == "ok" for row in rows)
        for row in (row for row in rows if row["error"]):
            name, error = row["sources"][0], str(row["error"])
            self.errors.append(error if name in error else f"{name}: {error}")

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

    def row(self, made: Features | None, error: str | None) -> Row:
        """Its row: what became of it."""
        row: Row = {
            "key": self.key,
            "sources": [source.name for source in self.sources],
            "sha256": self.digest,
            "status": "ok" if made is not None else "error",
            "error": error,
        }
        if made is not None:
            tokens = {"tokens_in": sum(made.counts), "tokens_out": sum(made.kept_counts)}
            row |= made.facts() | tokens
        return row


Digest = tuple[str | None, str | None]
"""sha256 of a source's bytes, or why they cannot be read."""


def digest(source: Source) -> Digest:
    """Read and hash one source."""
    try:
        return source.digest(), None
    except InputError as error:
        return None, str(error)


def digests(sources: Sequence[Source]) -> list[Digest]:
    """The same for all of them, by a few threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(digest, sources))


def gather(sources: Sequence[Source], hashed: Sequence[Digest], recipe: Recipe) -> list[Item]:
    """Items of work, ordered by key; sources with the same bytes become one."""
    found: dict[str, tuple[str | None, list[Source], str | None]] = {}
    for source, (sha256, error) in zip(sources, hashed, strict=True):
        known = sha256 or _unreadable(source.name)
        found.setdefault(recipe.key(known), (sha256, [], error))[1].append(source)
    return [
        Item(key, sha256, tuple(same), error)
        for key, (sha256, same, error) in sorted(found.items())
    ]


def _unreadable(name: str) -> str:
    """Stands for the hash of a source that cannot be read; file names may be no valid Unicode."""
    return hashlib.sha256(f"unreadable:{name}".encode(errors="surrogatepass")).hexdigest()


def cut(items: Sequence[Item], job: Job) -> list[list[Item]]:
    """All of them cut into shards: this run's."""
    chunks = [list(items[i : i + job.shard_size]) for i in range(0, len(items), job.shard_size)]
    return chunks[job.index :: job.shards]
