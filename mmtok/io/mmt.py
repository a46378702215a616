"""The .mmt container: codes at their entropy bound in a safetensors file, checked on reading.

The file is what any safetensors reader opens: the byte tensor `codes`, the byte tensor `kept` where
tokens other than the first were kept (a bitmap of each item's grid), and one metadata string `mmt`,
the JSON header with its own CRC-32. The tokens of all items follow each other in blocks of
`block_tokens`, each one whole number (`mmtok.io.packing`) followed by its CRC-32, which starts from
the header's and the block's place: blocks cannot be swapped within a file or between files. The
first tokens are read from the first blocks alone.

Nothing in a file is executed, and memory is bounded by the file's size: a token takes at least one
bit, and the header at most `MAX_HEADER` bytes.
"""

from __future__ import annotations

import zlib
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mmtok.codes import Codes, cells
from mmtok.errors import InputError
from mmtok.io.files import check_file, reason, replacing
from mmtok.io.mmt_header import BLOCK_BITS, MAX_HEADER, MAX_ITEMS, Header, parse, seal
from mmtok.io.packing import block_bits, block_bytes, pack, unpack

SUFFIX = ".mmt"

_EXPECTED = "an .mmt file written by `mmtok encode`"


def write_codes(codes: Codes, path: str | PathLike[str]) -> int:
    """Write codes into a file, whole or not at all, and return its size in bytes.

    Args:
        codes: of one tokenizer, at most `MAX_ITEMS` items.
        path: the file; an existing one is replaced.

    Raises:
        InputError: the file cannot be written, or could not be read back: no items or more than
            `MAX_ITEMS`, a tokenizer's name or a header too long, `meta` that JSON changes, or media
            that `read_codes` would not believe of so few tokens (see docs/tokenizers.md).
    """
    data = to_bytes(codes)
    with replacing(path) as beside:
        beside.write_bytes(data)
    return len(data)


def to_bytes(codes: Codes) -> bytes:
    """The file of `write_codes` as bytes: the same codes give the same bytes."""
    from safetensors.numpy import save

    if len(codes.ids) > MAX_ITEMS:
        raise InputError(f"{len(codes.ids)} items, expected at most {MAX_ITEMS} in one file")
    sizes = codes.codebook.sizes
    header = Header(
        codebook=codes.codebook,
        tokenizer=codes.tokenizer,
        tokenizer_hash=codes.tokenizer_hash,
        shapes=codes.shapes,
        grids=codes.grids,
        counts=codes.counts,
        block_tokens=max(1, BLOCK_BITS // block_bits(sizes, 1)),
        kept=codes.positions is not None,
        meta=codes.meta,
    )
    text, crc = seal(header)
    ids = [item.cpu().numpy() for item in codes.ids]
    digits = np.concatenate(ids) if ids else np.empty((0, len(sizes)), dtype=np.int64)
    parts, start = [], 0
    for place, tokens in enumerate(header.blocks):
        block = pack(digits[start : start + tokens], sizes)
        parts.append(block + _check(block, place, crc))
        start += tokens
    tensors = {"codes": np.frombuffer(b"".join(parts), dtype=np.uint8)}
    if codes.positions is not None:
        bitmap = _bitmap(codes).tobytes()
        bitmap += _check(bitmap, len(parts), crc)
        tensors["kept"] = np.frombuffer(bitmap, dtype=np.uint8)
    if len(text) > MAX_HEADER // 2:
        raise InputError(f"header of {len(text)} bytes, expected at most {MAX_HEADER // 2}")
    return bytes(save(tensors, metadata={"mmt": text}))


def read_header(path: str | PathLike[str]) -> Header:
    """What a file says about its codes, none of which is read.

    Raises:
        InputError: as in `read_codes`, as far as the header tells.
    """
    return _Opened(check_file(path, _EXPECTED)).header


def read_codes(path: str | PathLike[str], *, tokens: int | None = None) -> Codes:
    """The codes of a file.

    Args:
        path: the file; its content decides, not its name.
        tokens: read this many tokens of the first item only, from the blocks that hold them.

    Raises:
        InputError: no such file, not an .mmt file, one of a later version, damaged, cut off, or
            one whose parts contradict each other.
    """
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens={tokens}: expected at least 1")
    file = check_file(path, _EXPECTED)
    opened = _Opened(file)
    try:
        return opened.codes(tokens)
    except InputError as error:
        raise InputError(f"{file}: damaged ({error})") from None


class _Opened:
    """A file whose header has been read and checked against the tensors beside it."""

    def __init__(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.file = file
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
            if length > MAX_HEADER:
                raise InputError(f"{file}: damaged or no .mmt file (header of {length} bytes)")
            self.tensors = cast(Any, safe_open(file, "np"))
            text = (self.tensors.metadata() or {}).get("mmt")
            found = {name: self._length(name) for name in self.tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: damaged or no .mmt file ({reason(error):.80})") from None
        if text is None:
            raise InputError(f"{file}: no metadata `mmt`, expected {_EXPECTED}")
        try:
            self.header, self.crc = parse(text)
            self._compare(found)
        except InputError as error:
            raise InputError(f"{file}: damaged header ({error})") from None

    def _length(self, name: str) -> int:
        part = self.tensors.get_slice(name)
        if part.get_dtype() != "U8" or len(part.get_shape()) != 1:
            raise InputError(f"{self.file}: tensor {name!r:.40} is not a row of bytes")
        return int(part.get_shape()[0])

    def _compare(self, found: dict[str, int]) -> None:
        header = self.header
        expected = {"codes": header.payload_bytes}
        if header.kept:
            expected["kept"] = sum(-(-cells(grid) // 8) for grid in header.grids) + 4
        if found != expected:
            raise InputError(f"bytes of tensors are {found!s:.100}, the header says {expected}")

    def codes(self, tokens: int | None) -> Codes:
        header = self.header
        counts, shapes, grids = header.counts, header.shapes, header.grids
        if tokens is not None:
            counts, shapes, grids = [min(tokens, counts[0])], shapes[:1], grids[:1]
        rows = np.split(self._digits(sum(counts)), np.cumsum(counts)[:-1])
        return Codes(
            ids=[torch.from_numpy(row.copy()) for row in rows],
            codebook=header.codebook,
            tokenizer=header.tokenizer,
            tokenizer_hash=header.tokenizer_hash,
            shapes=shapes,
            grids=grids,
            positions=self._positions(counts) if header.kept else None,
            meta=header.meta,
        )

    def _digits(self, wanted: int) -> NDArray[np.int64]:
        header = self.header
        sizes = header.codebook.sizes
        rows = [np.empty((0, len(sizes)), dtype=np.int64)]
        part, start = self.tensors.get_slice("codes"), 0
        blocks = header.blocks[: -(-wanted // header.block_tokens)]
        for place, tokens in enumerate(blocks):
            end = start + block_bytes(sizes, tokens) + 4
            rows.append(unpack(self._checked(part[start:end], place), sizes, tokens))
            start = end
        return np.concatenate(rows)[:wanted]

    def _positions(self, counts: list[int]) -> list[torch.Tensor]:
        header = self.header
        bitmap = self._checked(self.tensors.get_slice("kept")[:], len(header.blocks))
        places, start = [], 0
        for grid, kept, count in zip(header.grids, header.counts, counts, strict=False):
            end = start + -(-cells(grid) // 8)
            row = np.unpackbits(np.frombuffer(bitmap[start:end], np.uint8), bitorder="little")
            found = np.flatnonzero(row)
            if len(found) != kept or (kept and found[-1] >= cells(grid)):
                raise InputError("the kept positions are not as many as the tokens")
            places.append(torch.from_numpy(found[:count].astype(np.int64)))
            start = end
        return places

    def _checked(self, part: NDArray[np.uint8], place: int) -> bytes:
        data = part.tobytes()
        if data[-4:] != _check(data[:-4], place, self.crc):
            raise InputError(f"the check of block {place} fails")
        return data[:-4]


def _check(data: bytes, place: int, crc: int) -> bytes:
    return zlib.crc32(data, zlib.crc32(place.to_bytes(8, "little"), crc)).to_bytes(4, "little")


def _bitmap(codes: Codes) -> NDArray[np.uint8]:
    rows = [np.empty(0, dtype=np.uint8)]
    for grid, places in zip(codes.grids, codes.positions or [], strict=True):
        row = np.zeros(cells(grid), dtype=np.uint8)
        row[places.cpu().numpy()] = 1
        rows.append(np.packbits(row, bitorder="little"))
    return np.concatenate(rows)
