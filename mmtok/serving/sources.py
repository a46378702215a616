"""What a preprocessing job reads: images and videos from folders, lists, tables and archives.

Nothing is decoded here. A source knows where its bytes are and reads them when asked, so a listing
of millions of items stays small.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from mmtok.errors import InputError
from mmtok.io.files import check_file, reason

_IMAGES = ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ppm .avif .jp2"
_VIDEOS = ".mp4 .m4v .mov .3gp .webm .mkv .avi .ts .m2ts .mpg .mpeg .flv .wmv .asf .ogv"
SUFFIXES = frozenset(f"{_IMAGES} {_VIDEOS}".split())
"""Endings by which media are told apart from other files in folders and archives."""
FIELDS = ("image", "video", "media", "path")
"""Where a row of a JSONL list names its file."""
MAX_BYTES = 2**31
"""Most bytes of one item: 2 GiB."""


@dataclass(frozen=True)
class Source:
    """One image or video.

    Attributes:
        name: what the manifest calls it.
        path: the file that holds it.
        offset: where its bytes begin, in an archive; None for a file of its own.
        size: how many bytes of the archive are its own.
        cell: (row group, row, column) in a Parquet file.
    """

    name: str
    path: Path
    offset: int | None = None
    size: int | None = None
    cell: tuple[int, int, str] | None = None

    def read(self) -> bytes:
        """The media's bytes.

        Raises:
            InputError: gone, unreadable, empty or above `MAX_BYTES`.
        """
        if self.cell is not None:
            return _read_cell(self.path, *self.cell)
        return b"".join(self._blocks())

    def _blocks(self) -> Iterator[bytes]:
        """The bytes, a MiB at a time."""
        try:
            file = self.path if self.offset is not None else check_file(self.path, "a media file")
            size = file.stat().st_size if self.size is None else self.size
            if size > MAX_BYTES:
                raise InputError(f"{self.name}: {size} bytes, expected at most {MAX_BYTES}")
            with file.open("rb") as opened:
                opened.seek(self.offset or 0)
                while size > 0 and (block := opened.read(min(size, 2**20))):
                    size -= len(block)
                    yield block
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({reason(error)})") from None

    @contextmanager
    def file(self) -> Iterator[Path]:
        """A file of its own with the media's bytes; a temporary one where there is none."""
        if self.offset is None and self.cell is None:
            yield self.path
            return
        with NamedTemporaryFile(suffix=Path(self.name).suffix) as temporary:
            temporary.write(self.read())
            temporary.flush()
            yield Path(temporary.name)

    def digest(self) -> str:
        """sha256 of the media's bytes, in hexadecimal."""
        digest = hashlib.sha256()
        for block in self._blocks() if self.cell is None else [self.read()]:
            digest.update(block)
        return digest.hexdigest()


def list_sources(path: Path, column: str = "image") -> list[Source]:
    """Every image and video of a job, in a fixed order.

    Args:
        path: a folder (searched in depth, links to folders not followed), an image or video, a
            list (.txt: a path a line; .jsonl: rows with one of `FIELDS`), an uncompressed .tar
            (WebDataset) or a .parquet file. Paths in a list count from the list's folder.
        column: of a Parquet file: bytes, {"bytes", "path"} records, or paths.

    Raises:
        InputError: not there, of no known kind, malformed, or without any media.
    """
    if path.is_dir():
        found = _folder(path)
    else:
        check_file(path, "a folder, a media file, or a .txt, .jsonl, .tar or .parquet list of them")
        found = _reader(path, column)(path)
    if not found:
        raise InputError(f"{path}: no images or videos in it, expected at least one")
    return found


def _reader(path: Path, column: str) -> Callable[[Path], list[Source]]:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return lambda file: [Source(file.name, file)]
    readers: dict[str, Callable[[Path], list[Source]]] = {
        ".txt": _text_list,
        ".jsonl": _json_list,
        ".tar": _archive,
        ".parquet": lambda file: _table(file, column),
    }
    if suffix not in readers:
        raise InputError(
            f"{path}: cannot tell what this is, expected a folder, an image, a video, or one of "
            f"{', '.join(readers)}"
        )
    return readers[suffix]


def _folder(folder: Path) -> list[Source]:
    files = [
        Path(place, name)
        for place, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES
    ]
    return [Source(str(file.relative_to(folder)), file) for file in sorted(files)]


def _text_list(path: Path) -> list[Source]:
    lines = _lines(path)
    return [Source(line.strip(), path.parent / line.strip()) for line in lines if line.strip()]


def _json_list(path: Path) -> list[Source]:
    found = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            names = [row[field] for field in FIELDS if isinstance(row.get(field), str)]
        except (ValueError, AttributeError, RecursionError):
            names = []
        if len(names) != 1:
            raise InputError(
                f"{path}, line {number}: expected a JSON object with one of {', '.join(FIELDS)}"
            )
        found.append(Source(names[0], path.parent / names[0]))
    return found


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        return [line.removesuffix("\r") for line in lines]
    except ValueError as error:
        raise InputError(f"{path}: not a UTF-8 text ({reason(error)})") from None


def _archive(path: Path) -> list[Source]:
    try:
        with tarfile.open(path, "r:") as archive:
            found = archive.getmembers()
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: not a complete uncompressed tar ({reason(error)})") from None
    files = {member.name: member for member in found if member.isreg()}
    members = []
    for member in found:
        # a hard link whose file is not there is an item without bytes
        held = files.get(member.linkname) if member.islnk() else member
        if (member.isreg() or member.islnk()) and Path(member.name).suffix.lower() in SUFFIXES:
            offset, size = (held.offset_data, held.size) if held else (0, 0)
            members.append(Source(member.name, path, offset, size))
    return sorted(members, key=lambda source: (source.name, source.offset))


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    try:
        return parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({reason(error)})") from None


def _table(path: Path, column: str) -> list[Source]:
    table = _parquet(path)
    if column not in table.schema_arrow.names:
        known = ", ".join(table.schema_arrow.names)
        raise InputError(f"{path}: no column {column!r}, there are: {known}")
    paths = _holds_paths(path, table.schema_arrow.field(column))
    found = []
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        names = (
            _row_group(path, group, column, path.stat().st_mtime_ns).to_pylist()
            if paths
            else [None] * rows
        )
        found += [
            Source(name, path.parent / name)
            if name  # an empty one is an item without bytes
            else Source(f"{path.name}:{group}:{row}", path, cell=(group, row, column))
            for row, name in enumerate(names)
        ]
    return found


def _holds_paths(path: Path, field: Any) -> bool:
    """Whether a column is of paths, not of bytes or records.

    Raises:
        InputError: it is of neither.
    """
    kind = str(getattr(field.type, "value_type", field.type))
    if kind in ("string", "large_string", "string_view"):
        return True
    if "binary" not in kind and not kind.startswith("struct"):
        raise InputError(
            f"{path}: column {field.name!r} holds {kind}, expected bytes, paths or "
            '{"bytes", "path"} records'
        )
    return False


@lru_cache(maxsize=4)
def _row_group(path: Path, group: int, column: str, changed_ns: int) -> Any:
    """A column of a row group; neighbours are read one after the other while they are hashed."""
    table = _parquet(path)
    from pyarrow import ArrowException

    try:
        return table.read_row_group(group, columns=[column])[column]
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: row group {group} is damaged ({reason(error)})") from None


def _read_cell(path: Path, group: int, row: int, column: str) -> bytes:
    try:
        changed_ns = path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    try:
        value = _row_group(path, group, column, changed_ns)[row].as_py()
    except LookupError:  # another file by now
        raise InputError(f"{path}: row {row} of group {group} is not there any more") from None
    name = value.get("path") if isinstance(value, dict) else None
    value = value.get("bytes") if isinstance(value, dict) else value
    if not value and isinstance(name, str) and name:
        return Source(name, path.parent / name).read()
    if not isinstance(value, bytes) or not value:
        raise InputError(f"{path}, row {row} of group {group}: {column!r} holds no bytes")
    return value
