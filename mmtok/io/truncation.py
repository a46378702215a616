"""Whether a video file is all there, by the lengths it states about itself.

Decoders play a cut-off file as far as it goes; for a measurement that would be a silent error.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


def missing_bytes(file: Path) -> int:
    """How many bytes an MP4, MOV, Matroska, WebM or AVI file lacks at its end.

    0 for a complete file, for one that was streamed without stating its length, and for any
    other kind of file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(12)
        if head[4:8] in _ISO_BOXES:
            return _missing_iso(stream, size)
        if head.startswith(b"\x1a\x45\xdf\xa3"):
            return _missing_matroska(stream, size)
        if head.startswith(b"RIFF") and head[8:] == b"AVI ":
            stated = struct.unpack("<I", head[4:8])[0]
            return 0 if stated == 2**32 - 1 else max(stated + 8 - size, 0)
    return 0


def _missing_iso(stream: BinaryIO, size: int) -> int:
    """Walk the top-level boxes: a length, of itself included, and a kind, of four bytes each."""
    position = 0
    while position + 8 <= size:
        stream.seek(position)
        head = stream.read(16)
        length = int.from_bytes(head[:4])
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:])
        if length < 8:
            return 0
        position += length
    return max(position - size, 0)


def _missing_matroska(stream: BinaryIO, size: int) -> int:
    """The EBML header, then one segment: each an id of four bytes, a length and its content."""
    position = 0
    for _ in range(2):
        stream.seek(position + 4)
        head = stream.read(8)
        width = 9 - head[0].bit_length() if head and head[0] else 9
        if width > len(head):
            return 0
        length = int.from_bytes(head[:width]) & (1 << 7 * width) - 1
        if length == (1 << 7 * width) - 1:
            return 0
        position += 4 + width + length
    return max(position - size, 0)
