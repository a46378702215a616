"""What every reader checks first, and how every writer ends: whole files only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from mmtok.errors import InputError


def check_name(path: str | PathLike[str]) -> Path:
    """The path as a `Path`, once the system can say whether something lies there.

    Raises:
        InputError: a name or path too long, a loop of links, a folder that may not be entered.
    """
    file = Path(path)
    try:
        file.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be the name of a file ({reason(error)})") from None
    return file


def user_path(name: str | PathLike[str]) -> Path:
    """The same for what may start with ~, the home of this or of another user.

    Raises:
        InputError: as in `check_name`.
    """
    return check_name(os.path.expanduser(name))


def refuse_input(target: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write over what is read, whichever names or links lead to it.

    Raises:
        InputError: `target` is one of `inputs`.
    """
    for path in inputs:
        if target.exists() and path.exists() and target.samefile(path):
            raise InputError(f"{target}: is the input {path} itself, name another file to write")


def check_file(path: str | PathLike[str], expected: str) -> Path:
    """The path as a `Path`, once it is known to name a readable, non-empty regular file.

    Args:
        path: what the user gave.
        expected: what should lie there, for the message ("an image file: JPEG, PNG, ...").

    Raises:
        InputError: nothing there, a directory, a pipe or device, no permission, or no bytes.
    """
    file = Path(path)
    try:
        if file.is_dir():
            empty = " (so is an empty path)" if file == Path() else ""
            raise InputError(f"{file}: is a directory{empty}, expected {expected}")
        if not file.exists():
            raise InputError(f"{file}: no such file, expected {expected}")
        if not file.is_file():
            raise InputError(f"{file}: is not a regular file, expected {expected}")
        size = file.stat().st_size
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({reason(error)}), expected {expected}") from None
    if not os.access(file, os.R_OK):
        raise InputError(f"{file}: no permission to read it, expected {expected}")
    if size == 0:
        raise InputError(f"{file}: is empty (0 bytes), expected {expected}")
    return file


def reason(error: BaseException) -> str:
    """The message of an exception as one line, without the file name some libraries add."""
    said = getattr(error, "strerror", None)
    if said:
        return str(said)
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A path beside `path` with the same extension; what is written there takes its place.

    The file appears whole, once the block has ended; if it raises, nothing is left behind.

    Raises:
        InputError: it cannot be written.
    """
    file = Path(path)
    # Short, so that it is legal wherever the name itself is.
    beside = file.with_name(f".{os.getpid()}-{secrets.token_hex(4)}{file.suffix[:16]}")
    try:
        yield beside
        beside.replace(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({reason(error)})") from None
    finally:
        with suppress(OSError):  # what went wrong before is what to tell of
            beside.unlink(missing_ok=True)
