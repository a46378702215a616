"""Question files: JSON, JSON lines, and the nearly-JSON that benchmarks publish."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtok.errors import InputError
from mmtok.io.files import check_file, reason

_TRAILING = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[\]}])')


def is_file(path: Path) -> bool:
    """Whether a file is there, and not an error where its name is too long or odd."""
    return os.path.isfile(path)


def check_folder(path: Path) -> None:
    """Refuse a folder of results that cannot be made or written in; makes nothing.

    Raises:
        InputError: a file is in the way, no permission, or a name too long.
    """
    try:
        there = next(one for one in (path, *path.absolute().parents) if one.exists())
    except OSError as error:
        raise InputError(f"{str(path)[:200]}: cannot be written ({reason(error)})") from None
    if not there.is_dir():
        raise InputError(f"{path}: {there} is a file, expected a folder to write into")
    if not os.access(there, os.W_OK):
        raise InputError(f"{path}: no permission to write in {there}")


def read_text(path: Path, expected: str) -> str:
    """A UTF-8 text file, a byte order mark left out.

    Raises:
        InputError: no such file, empty, or not UTF-8.
    """
    check_file(path, expected)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}), expected {expected}") from None


def read_json(path: Path) -> Any:
    """One JSON document; commas before a closing bracket are forgiven.

    Raises:
        InputError: no such file, or not JSON.
    """
    text = read_text(path, "a JSON file")
    try:
        try:
            return json.loads(text)
        except ValueError:
            return json.loads(_TRAILING.sub(lambda hit: hit[1] or "", text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {str(error).splitlines()[0]}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON array or of JSON lines.

    Raises:
        InputError: neither of the two.
    """
    if not read_text(path, "a JSON file").lstrip().startswith("["):
        return read_json_lines(path)
    rows = read_json(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, entry {number}: expected an object, got {str(row)[:60]!r}")
    return list(rows)


def read_json_lines(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """The JSON objects of a file with one a line, blank lines left out.

    Args:
        path: the file.
        torn: forgive a last line without its end.

    Raises:
        InputError: no such file, not UTF-8, or a line is no JSON object; the message says which.
    """
    lines = read_text(path, "a file with one JSON object a line").split("\n")
    if torn:
        lines = lines[:-1]
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected one JSON object, got {line[:60]!r}")
        rows.append(row)
    return rows


def texts(row: Mapping[str, Any], name: str, where: str) -> list[str]:
    """A list of texts, empty where there is none.

    Raises:
        InputError: something else.
    """
    found = row.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise InputError(f"{where}: {name!r} is {str(found)[:60]!r}, expected a list of texts")
    return found


def field(row: Mapping[str, Any], name: str, where: str) -> Any:
    """A field that a question must have.

    Raises:
        InputError: it is missing.
    """
    if row.get(name) is None:
        raise InputError(f"{where}: no {name!r}; found {', '.join(map(str, row)) or 'nothing'}")
    return row[name]
