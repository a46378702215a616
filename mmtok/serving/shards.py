"""The folder a job writes: shards of features, a row for every item, a manifest, the recipe.

    run.json                     the recipe; another one is refused
    shards/<name>.safetensors    its items' tensors; or another of `mmtok.serving.formats`
    shards/<name>.jsonl          the rows of that shard's items, written once the tensors are
    manifest.jsonl               all rows, ordered by key

A file is written under another name, flushed to the disk and renamed, so whatever bears its name is
whole. A shard counts as done when its rows are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from mmtok.errors import InputError
from mmtok.io.files import reason
from mmtok.serving import formats
from mmtok.serving.features import Features
from mmtok.serving.recipe import Recipe, load_recipe, versions
from mmtok.serving.rows import Row, by_key, content_hash, damaged, read_rows


def open_folder(out: Path, recipe: Recipe) -> None:
    """Make the folder, or check that what is in it was made by the same recipe.

    Raises:
        InputError: it cannot be written, or holds the results of another recipe.
    """
    path, said = out / "run.json", recipe.canonical()
    make_folder(out / "shards")
    if os.path.exists(path):
        found = load_recipe(out).canonical()
        if found != said:
            raise InputError(
                f"{out}: holds results of another recipe, expected a new folder: it has "
                f"{found}, this run is {said}"
            )
        return
    with whole(path) as temporary:
        made = {"recipe": json.loads(said), "versions": versions()}
        temporary.write_text(json.dumps(made, indent=1) + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: not a folder this can write to ({reason(error)}), expected a new one"
        ) from None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file that takes the name `path` once it is complete and on the disk.

    Raises:
        InputError: it cannot be written.
    """
    # a process id alone is not unique where several machines share a disk
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written ({reason(error)})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_shard(
    out: Path, made: Mapping[str, Features], rows: list[Row], form: str = "safetensors"
) -> str:
    """Write one shard: its tensors, then its rows. Returns its name.

    Args:
        out: the job's folder.
        made: key -> features, of the items that succeeded.
        rows: a row for every item; `shard` and `tensors_sha256` are added to them.
        form: one of `mmtok.serving.formats.FORMATS`.
    """
    named = hashlib.sha256("".join(row["key"] for row in rows).encode()).hexdigest()[:16]
    good = [row for row in rows if row["key"] in made]
    tensors = {row["key"]: made[row["key"]].tensors() for row in good}
    for row in good:
        row |= {
            "shard": f"{named}.{form}",
            "tensors_sha256": tensors_sha256(tensors[row["key"]]),
        }
    if good:
        with whole(out / "shards" / f"{named}.{form}") as temporary:
            formats.write(temporary, form, good, tensors)
    write_rows(out / "shards" / f"{named}.jsonl", rows)
    return named


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a file of rows.

    Raises:
        InputError: it cannot be written.
    """
    with whole(path) as temporary, temporary.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}\n".encode())
        digest.update(
            x.contiguous().flatten().view(torch.uint8).numpy().tobytes() if x.numel() else b""
        )
    return digest.hexdigest()


def row_files(out: Path) -> list[Path]:
    """The files with the rows of all shards."""
    return sorted((out / "shards").glob("*.jsonl"))


def shard_rows(out: Path) -> Iterator[tuple[Path, list[Row]]]:
    """The rows of each shard, and the file they are in.

    Raises:
        InputError: some are damaged.
    """
    for path in row_files(out):
        try:
            yield path, read_rows(path)
        except InputError:
            if os.path.lexists(path):  # else another worker has just taken it away
                raise


def is_lost(out: Path, row: Row) -> bool:
    """Whether the file with an item's tensors is gone."""
    # unlike `Path.is_file`, this takes any name, however long
    return row["status"] == "ok" and not os.path.isfile(shard_path(out, row))


def shard_path(out: Path, row: Row) -> Path:
    """The file with an item's tensors; never one outside the folder, whatever the row says."""
    return out / "shards" / Path(row["shard"]).name


def write_manifest(
    out: Path, sources: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, set[str]]:
    """Gather the rows of all shards into the manifest.

    Several workers may do so at once: whoever replaces the manifest looks afterwards whether
    shards have come since it read them, so the last one to replace it has seen them all.

    Args:
        out: the job's folder.
        sources: key -> names of items of this run; those that came after their shard was written
            are added to its rows here, beside those of earlier manifests.

    Returns:
        The content hash, which covers keys, status and tensors: the same for the same media and
        recipe, however the work was divided; and the keys of the items that failed.
    """
    own = sources or {}
    while True:
        seen, earlier = row_files(out), dict[str, list[str]]()
        with suppress(InputError):  # none, or a damaged one that is replaced
            earlier = {row["key"]: row["sources"] for row in read_manifest(out)}
        found = by_key(row for _, own_rows in shard_rows(out) for row in own_rows)
        rows = sorted(found.values(), key=lambda row: str(row["key"]))
        for row in rows:
            known = (row["sources"], earlier.get(row["key"], ()), own.get(row["key"], ()))
            row["sources"] = sorted(set().union(*known))
        write_rows(out / "manifest.jsonl", rows)
        if row_files(out) == seen:
            return content_hash(rows), {row["key"] for row in rows if row["status"] == "error"}


def manifest_path(out: Path) -> Path:
    """The manifest of a finished job.

    Raises:
        InputError: there is none.
    """
    path = out / "manifest.jsonl"
    if not os.path.isfile(path):
        raise InputError(f"{path}: not found, expected a folder that `mmtok preprocess` made")
    return path


def read_manifest(out: Path) -> list[Row]:
    """All rows of a finished job.

    Raises:
        InputError: no manifest, or a damaged one.
    """
    return read_rows(manifest_path(out))


def read_items(out: Path, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Tensor]]]:
    """The tensors of items, each shard read once, checked against their rows.

    Yields:
        Row and tensors, shard by shard.

    Raises:
        InputError: a shard is gone or damaged, or holds something else.
    """
    shards: dict[Path, dict[str, Row]] = {}
    for row in rows:
        shards.setdefault(shard_path(out, row), {})[row["key"]] = row
    for path, wanted in shards.items():
        left = dict(wanted)
        for key, tensors in formats.read(path, wanted):
            if tensors_sha256(tensors) != wanted[key]["tensors_sha256"]:
                why = f"the tensors of {key[:12]} are not what was written"
                raise damaged(str(path), why)
            if left.pop(key, None):
                yield wanted[key], tensors
        if left:
            raise damaged(str(path), f"no tensors of {next(iter(left))[:12]} in it")


def read_item(out: Path, row: Row) -> dict[str, Tensor]:
    """The tensors of one item, checked against its row.

    Raises:
        InputError: the shard is gone or damaged, or holds something else.
    """
    return next(tensors for _, tensors in read_items(out, [row]))
