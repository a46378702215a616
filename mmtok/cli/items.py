"""What `encode`, `decode` and `inspect` share: many files, one line for each that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from mmtok.cli import output
from mmtok.errors import InputError
from mmtok.io.files import check_name, refuse_input


@dataclass(frozen=True)
class Job:
    """One file and where what is made of it goes."""

    source: Path
    target: Path


def find_files(paths: Sequence[Path], suffixes: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """(file, its path below the argument that named it), folders searched, in a fixed order.

    Raises:
        InputError: a folder without files of these extensions, or a path too long for any file.
    """
    for path in paths:
        if not check_name(path).is_dir():
            yield path, Path(path.name)
            continue
        found = [
            file
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
        ]
        if not found:
            raise InputError(f"{path}: no files ending in {', '.join(suffixes)} in this folder")
        for file in found:
            yield file, file.relative_to(path)


def plan_jobs(
    paths: Sequence[Path],
    suffixes: Sequence[str],
    out: Path | None,
    endings: Sequence[str],
    rename: Callable[[str], str],
) -> list[Job]:
    """Where everything goes: beside its source, into the folder `out`, or to the file `out`.

    Args:
        paths: files and folders; folders keep their inner structure.
        suffixes: of the files taken from folders.
        out: the folder; with one file it may name the output itself.
        endings: extensions by which `out` is known to name a file.
        rename: file name of the output from that of the source.

    Raises:
        InputError: nothing to do, two files would become one, or one would replace another.
    """
    found = list(find_files(paths, suffixes))
    if out is not None and check_name(out).suffix.lower() in endings and not out.is_dir():
        if len(found) != 1 or paths[0].is_dir():
            raise InputError(f"--out {out} is one file, expected a folder for many")
        if not out.parent.is_dir():
            raise InputError(f"--out {out}: no such folder as {out.parent}")
        refuse_input(out, [found[0][0]])
        return [Job(found[0][0], out)]
    jobs = [
        Job(file, (file if out is None else out / below).with_name(rename(file.name)))
        for file, below in found
    ]
    targets: dict[Path, Path] = {}
    sources = {source.absolute() for source, _ in found}
    for job in jobs:
        final = job.target.suffix.lower() in endings and job.target != job.source
        if final and job.target.absolute() in sources:
            refuse_input(job.target, [job.target])
        other = targets.setdefault(job.target.absolute(), job.source)
        if other != job.source:
            raise InputError(f"{other} and {job.source} would both become {job.target}")
    return list(dict.fromkeys(jobs))


def make_room(target: Path, source: Path, overwrite: bool) -> None:
    """Make the folder of an output file.

    Raises:
        InputError: the file is there already, it is the source, or its folder cannot be made.
    """
    refuse_input(check_name(target), [source])
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already: pass --overwrite to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target.parent}: no folder can be made there ({error})") from None


def run_all(
    jobs: Sequence[Any], name: Callable[[Any], Path], work: Callable[[Any], dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Results of the jobs that worked, and path and line of those that did not."""
    done, failed = [], []
    for job in jobs:
        path = str(name(job))
        try:
            with enough_memory(
                f"{path}: memory does not suffice for media of this size, make it smaller"
            ):
                done.append(work(job))
        except InputError as error:
            said = str(error)
            line = " ".join((said if said.startswith(f"{path}:") else f"{path}: {said}").split())
            output.say(f"error: {line}")
            failed.append({"path": path, "error": line})
    return done, failed


@contextmanager
def enough_memory(line: str) -> Iterator[None]:
    """Where memory runs out, an error of this line.

    Raises:
        InputError: it does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise InputError(line) from None


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own error, or torch's: on a CPU that is told by its message alone."""
    said = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said


def finish(done: Sequence[Any], failed: Sequence[Any]) -> None:
    """End with 0 if all worked, 3 if some failed, 2 if all did."""
    if failed:
        raise typer.Exit(3 if done else 2)
