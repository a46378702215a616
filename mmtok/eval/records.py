"""Files of predictions: JSON lines, written through to the disk, mended after a kill.

The first line says under which settings the file was made; each further line is one answer. Nothing
in it depends on time, so an interrupted and resumed run ends with the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtok.errors import InputError
from mmtok.eval.files import read_json_lines
from mmtok.io.files import check_file, reason, replacing


class Records:
    """One file that only grows by whole lines.

    Args:
        path: the file; made with `head` as its first line where it does not exist.
        head: settings; a file made under others is refused.

    Attributes:
        rows: what the file holds after the first line.

    Raises:
        InputError: the file is no such file, or was made under other settings.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path, self.head = path, head
        path.parent.mkdir(parents=True, exist_ok=True)
        mend(path)
        if path.exists() and path.stat().st_size:
            found, self.rows = read_records(path)
            if found != json.loads(json.dumps(head)):
                raise InputError(f"{path} was made with other settings: give another folder")
        else:
            self.rows = []
            self._write([head])

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; they are on the disk when this returns."""
        self._write(rows)
        self.rows += [dict(row) for row in rows]

    def replace(self, rows: Sequence[dict[str, Any]]) -> None:
        """Hold these rows instead; the file changes as a whole or not at all."""
        with replacing(self.path) as beside:
            fresh = Records(beside, self.head)
            fresh.append(rows)
        self.rows = list(rows)

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from the same files of predictions; a killed one lets go by itself.

    Args:
        path: of the files, the one that is never replaced.

    Raises:
        InputError: another process holds it, or it cannot be written.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({reason(error)}), give another --out"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{path}: another process is writing this run; wait for it, or give another --out"
            ) from None
        yield


def mend(path: Path) -> None:
    """Cut a torn last line off."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def read_records(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head and the rows of a file; a torn last line does not count.

    Raises:
        InputError: a line is no JSON object.
    """
    check_file(path, "a file of predictions (JSON lines)")
    lines = read_json_lines(path, torn=True)
    if not lines or "settings" not in lines[0]:
        raise InputError(f"{path}: its first line holds no settings; expected a file of mmtok eval")
    return lines[0], lines[1:]
