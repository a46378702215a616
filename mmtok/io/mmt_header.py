"""The header of an .mmt file: a JSON object with its own CRC-32, read with limits on everything."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NoReturn

from mmtok.codes import MAX_TOKEN_BITS, MAX_VALUES, Codebook, cells, check_shape
from mmtok.errors import InputError
from mmtok.io.packing import block_bytes

VERSION = 1
MAX_HEADER = 2**24
"""Most bytes of a header: 16 MiB."""
MAX_ITEMS = 2**16
"""Most items of one file."""
BLOCK_BITS = 2**15
"""Bits of a block, about: 4 KiB, of which 5 bytes are lost to the check and to rounding."""
_LENGTHS = {2: ("samples", 1, 2**24, 2**16), 4: ("frames", 0, 2**12, 2**8)}
"""By dimensions of the media: what runs along time, where in the shape, how many there may be
whatever the codes, which may be cut to one token, and how many more for every token."""
_MAX_TEXT = 4096


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says about its codes; fields as in `mmtok.codes.Codes`."""

    codebook: Codebook
    tokenizer: str
    tokenizer_hash: str
    shapes: list[tuple[int, ...]]
    grids: list[tuple[int, ...]]
    counts: list[int]
    block_tokens: int
    kept: bool
    meta: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the checksum."""
        book = self.codebook
        made: dict[str, Any] = {
            "version": VERSION,
            "tokenizer": self.tokenizer,
            "tokenizer_hash": self.tokenizer_hash,
            "kind": book.kind,
            "sizes": _runs(book.sizes),
            "order": book.order,
            "shapes": _runs(self.shapes),
            "grids": _runs(self.grids),
            "counts": _runs(self.counts),
            "block_tokens": self.block_tokens,
        }
        extra = {"levels": list(book.levels), "kept": self.kept, "meta": self.meta}
        return made | {key: value for key, value in extra.items() if value}

    @property
    def blocks(self) -> list[int]:
        """Tokens of each block: all full but the last."""
        full, rest = divmod(sum(self.counts), self.block_tokens)
        return [self.block_tokens] * full + [rest] * bool(rest)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the tensor `codes`."""
        full, rest = divmod(sum(self.counts), self.block_tokens)
        sizes = self.codebook.sizes
        last = block_bytes(sizes, rest) + 4 if rest else 0
        return full * (block_bytes(sizes, self.block_tokens) + 4) + last


def seal(header: Header) -> tuple[str, int]:
    """The header as JSON that ends with its checksum, and the checksum.

    Raises:
        InputError: it would not be read back as it is.
    """
    fields = header.to_dict()
    try:
        crc = zlib.crc32(_canonical(fields).encode())
        text = _canonical(fields | {"~crc32": crc})
        same = json.loads(text).get("meta", {}) == header.meta
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"header cannot be written as JSON: {type(error).__name__}") from None
    if not same:
        raise InputError("meta must be what JSON gives back: lists, and strings as keys")
    parse(text)
    return text, crc


def parse(text: str) -> tuple[Header, int]:
    """The header and its checksum from what `seal` made.

    Raises:
        InputError: it is not such a text, is of a later version, or contradicts itself.
    """
    try:
        fields = json.loads(text, parse_constant=_refuse)
        if not isinstance(fields, dict) or type(crc := fields.pop("~crc32", None)) is not int:
            raise InputError("no JSON object with a checksum")
        if (version := fields.get("version")) != VERSION:
            raise InputError(f"version {version!r:.20}, this mmtok reads version {VERSION}")
        if zlib.crc32(_canonical(fields).encode()) != crc:
            raise InputError("its checksum fails")
        return _header(fields), crc
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise InputError(f"unreadable: {type(error).__name__}") from None


def _header(fields: dict[str, Any]) -> Header:
    book = Codebook(
        kind=fields["kind"],
        sizes=tuple(_expand(fields["sizes"])),
        levels=tuple(fields.get("levels", ())),
        order=fields["order"],
    )
    made = Header(
        codebook=book,
        tokenizer=fields["tokenizer"],
        tokenizer_hash=fields["tokenizer_hash"],
        shapes=[tuple(shape) for shape in _expand(fields["shapes"], MAX_ITEMS)],
        grids=[tuple(grid) for grid in _expand(fields["grids"], MAX_ITEMS)],
        counts=_expand(fields["counts"], MAX_ITEMS),
        block_tokens=fields["block_tokens"],
        kept=fields.get("kept", False),
        meta=fields.get("meta", {}),
    )
    if not all(
        isinstance(text, str) and len(text) <= _MAX_TEXT
        for text in (made.tokenizer, made.tokenizer_hash)
    ):
        raise InputError("tokenizer and its hash must be short strings")
    if type(made.kept) is not bool or not isinstance(made.meta, dict):
        raise InputError("kept must be true, meta an object")
    _check_counts(made)
    return made


def _check_counts(header: Header) -> None:
    if not len(header.counts) == len(header.shapes) == len(header.grids) > 0:
        raise InputError("counts, shapes and grids must be as many, and at least one")
    for shape, _ in groupby(header.shapes):
        check_shape(shape)
    for (count, grid), _ in groupby(zip(header.counts, header.grids, strict=True)):
        if type(count) is not int or not 0 <= count <= cells(grid):
            raise InputError(f"{count!r:.40} tokens for a grid of {grid!s:.80}")
    tokens = header.block_tokens
    if type(tokens) is not int or tokens < 1:
        raise InputError("block_tokens must be at least 1")
    if tokens > 1 and tokens * header.codebook.bits > BLOCK_BITS + 1:
        raise InputError(f"blocks of {tokens} tokens are larger than {BLOCK_BITS} bits")
    _check_size(header)


def _check_size(header: Header) -> None:
    """A small file does not stand for media that take hours to decode."""
    for shape, count in zip(header.shapes, header.counts, strict=True):
        check_length(shape, count)
    values = sum(math.prod(shape) for shape in header.shapes)
    most = MAX_VALUES * (1 + header.payload_bytes)
    if values > most:
        raise InputError(
            f"media of {values} values in {header.payload_bytes} bytes of codes, expected at most "
            f"{most}: keep more tokens, or put fewer items into a file"
        )


def check_length(shape: tuple[int, ...], count: int) -> None:
    """A few tokens do not stand for very long media.

    Raises:
        InputError: a clip or a recording is longer than so many tokens may stand for.
    """
    if len(shape) not in _LENGTHS:
        return
    name, axis, free, per_token = _LENGTHS[len(shape)]
    if shape[axis] > (most := free + per_token * count):
        tokens = f"{count} token{'s' * (count != 1)}"
        raise InputError(
            f"{shape[axis]} {name} from {tokens}, expected at most {most}: keep more tokens"
        )


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _runs(values: Iterable[Any]) -> list[list[Any]]:
    """Equal neighbours as [value, how often]."""
    return [[value, len(list(same))] for value, same in groupby(values)]


def _expand(runs: Sequence[Sequence[Any]], most: int = MAX_TOKEN_BITS) -> list[Any]:
    if any(type(times) is not int or times < 1 for _, times in runs):
        raise InputError("runs must be pairs of a value and a number above 0")
    if (total := sum(times for _, times in runs)) > most:
        raise InputError(f"{total} values, expected at most {most}")
    return [value for value, times in runs for _ in range(times)]


def _refuse(name: str) -> NoReturn:
    raise InputError(f"{name} is no number")
