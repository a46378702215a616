"""Ids as bytes at the entropy bound of their codebooks: a block of digits is one whole number.

A block of n digits d_i with radices K_i is N = sum_i d_i prod_{j<i} K_j, written little-endian in
ceil(log2(prod K) / 8) bytes: less than a byte is lost per block. Where every radix is a power of
two that number is the plain string of bits, least significant first, and is built as one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmtok.errors import InputError

Digits = NDArray[np.int64]


@lru_cache(maxsize=64)
def block_bits(sizes: tuple[int, ...], tokens: int) -> int:
    """Bits of a block of `tokens` tokens, each one digit of every size."""
    return int((_product(sizes) ** tokens - 1).bit_length())


def block_bytes(sizes: tuple[int, ...], tokens: int) -> int:
    """Bytes of a block of `tokens` tokens."""
    return -(-block_bits(sizes, tokens) // 8)


def pack(digits: Digits, sizes: tuple[int, ...]) -> bytes:
    """The block of digits (tokens, Q), of which column q is below sizes[q]."""
    length = block_bytes(sizes, len(digits))
    widths = _widths(sizes)
    if widths is not None:
        columns = [
            (digits[:, q, None] >> np.arange(width)).astype(np.uint8) & 1
            for q, width in enumerate(widths)
        ]
        bits = np.concatenate(columns, axis=1).reshape(-1)
        return np.packbits(bits, bitorder="little").tobytes()
    radices = np.tile(np.array(sizes, dtype=np.int64), len(digits))
    return _join(digits.reshape(-1), radices).to_bytes(length, "little")


def unpack(data: bytes, sizes: tuple[int, ...], tokens: int) -> Digits:
    """The digits (tokens, Q) of a block.

    Raises:
        InputError: the bytes are not a block of that many tokens.
    """
    if len(data) != block_bytes(sizes, tokens):
        raise InputError(f"block of {len(data)} bytes, expected {block_bytes(sizes, tokens)}")
    widths = _widths(sizes)
    if widths is not None:
        return _unpack_bits(data, widths, tokens)
    number = int.from_bytes(data, "little")
    radices = np.tile(np.array(sizes, dtype=np.int64), tokens)
    return _split(number, radices).reshape(tokens, len(sizes))


def _product(sizes: tuple[int, ...]) -> int:
    """Balanced, so that thousands of factors take a few large multiplications."""
    numbers = list(sizes)
    while len(numbers) > 1:
        rest = numbers[len(numbers) & ~1 :]
        numbers = [a * b for a, b in zip(numbers[::2], numbers[1::2], strict=False)] + rest
    return numbers[0]


def _widths(sizes: tuple[int, ...]) -> list[int] | None:
    """Bits per digit, if all sizes are powers of two."""
    if any(size & (size - 1) for size in sizes):
        return None
    return [size.bit_length() - 1 for size in sizes]


def _unpack_bits(data: bytes, widths: list[int], tokens: int) -> Digits:
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    used = tokens * sum(widths)
    if bits[used:].any():
        raise InputError("block holds bits beyond its last token")
    rows = bits[:used].reshape(tokens, sum(widths))
    digits, start = np.empty((tokens, len(widths)), dtype=np.int64), 0
    for q, width in enumerate(widths):
        weights = np.int64(1) << np.arange(width)
        digits[:, q] = rows[:, start : start + width] @ weights
        start += width
    return digits


def _join(digits: Digits, radices: Digits) -> int:
    """Neighbours are joined until one number is left; a level costs about what the next does."""
    values, bases = [int(d) for d in digits], [int(r) for r in radices]
    while len(values) > 1:
        if len(values) % 2:
            values.append(0)
            bases.append(1)
        low, high = slice(None, None, 2), slice(1, None, 2)
        values = [
            a + base * b for a, base, b in zip(values[low], bases[low], values[high], strict=True)
        ]
        bases = [a * b for a, b in zip(bases[low], bases[high], strict=True)]
    return values[0]


def _split(number: int, radices: Digits) -> Digits:
    """The reverse of `_join`: the products of its levels divide the number back."""
    levels = [[int(r) for r in radices]]
    while len(levels[-1]) > 1:
        last = levels[-1] + [1] * (len(levels[-1]) % 2)
        levels[-1] = last
        levels.append([a * b for a, b in zip(last[::2], last[1::2], strict=True)])
    if number >= levels[-1][0]:
        raise InputError("block holds a number beyond its last token")
    values = [number]
    for bases in reversed(levels[:-1]):
        values = [
            part
            for value, base in zip(values, bases[::2], strict=False)
            for part in reversed(divmod(value, base))
        ]
        del values[len(bases) :]
    return np.array(values[: len(radices)], dtype=np.int64)
