"""The container: exact, as small as codebooks allow, safe with damaged and hostile files."""

from __future__ import annotations

import contextlib
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmtok.codes import Codebook, Codes
from mmtok.errors import InputError
from mmtok.io.mmt import read_codes, read_header, to_bytes, write_codes
from mmtok.io.packing import block_bits, pack, unpack
from tests.random_codes import mutate, random_codes

CASES, PER_TEST = 1000, 250


def assert_same(got: Codes, want: Codes) -> None:
    assert got.counts == want.counts
    assert all(torch.equal(a, b) for a, b in zip(got.ids, want.ids, strict=True))
    assert (got.positions is None) == (want.positions is None)
    if got.positions is not None and want.positions is not None:
        assert all(torch.equal(a, b) for a, b in zip(got.positions, want.positions, strict=True))
    for name in ("codebook", "tokenizer", "tokenizer_hash", "shapes", "grids", "meta"):
        assert getattr(got, name) == getattr(want, name), name


def bound_bytes(codes: Codes) -> float:
    """Entropy of uniform ids, and a bit for each place that may or may not be kept."""
    places = 0 if codes.positions is None else sum(math.prod(grid) for grid in codes.grids)
    return (codes.bits + places) / 8


@pytest.mark.parametrize("seed", range(CASES // PER_TEST))
def test_random_codes_round_trip_at_the_entropy_bound(seed: int, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(seed), tmp_path / "codes.mmt"
    for _ in range(PER_TEST):
        codes = random_codes(rng)
        size = write_codes(codes, path)
        assert size == path.stat().st_size <= bound_bytes(codes) * 1.005 + 1000
        assert_same(read_codes(path), codes)
        k = int(rng.integers(1, 100))
        assert_same(read_codes(path, tokens=k), codes.item(0).trim(k))
    assert [file.name for file in tmp_path.iterdir()] == ["codes.mmt"]


@pytest.mark.parametrize("size", [2, 3, 5, 1000, 64_000])
def test_long_files_stay_within_half_a_percent(size: int) -> None:
    ids = torch.randint(0, size, (150_000, 1), generator=torch.Generator().manual_seed(0))
    codes = Codes(
        ids=[ids],
        codebook=Codebook(kind="vq", sizes=(size,)),
        tokenizer="x",
        tokenizer_hash="0" * 64,
        shapes=[(1, 150_000)],
        grids=[(150_000,)],
    )
    assert len(to_bytes(codes)) <= codes.bits / 8 * 1.005 + 1000
    assert to_bytes(codes) == to_bytes(codes)


def test_a_block_is_one_number_in_mixed_radix() -> None:
    """The definition, digit by digit in Python's integers."""
    rng = np.random.default_rng(0)
    for sizes in [(3,), (2, 8), (5, 2, 7), (2**62, 3), (64_000,)]:
        for tokens in (1, 2, 3, 17):
            digits = np.stack([rng.integers(0, size, tokens) for size in sizes], axis=1)
            number, base = 0, 1
            for row in digits:
                for digit, size in zip(row, sizes, strict=True):
                    number, base = number + int(digit) * base, base * size
            data = pack(digits, sizes)
            assert data == number.to_bytes(math.ceil(math.log2(base) / 8 - 1e-12), "little")
            assert (unpack(data, sizes, tokens) == digits).all()
            assert block_bits(sizes, tokens) == (base - 1).bit_length()
    for sizes, data in [((3,), b"\xff\xff"), ((2, 2, 2), b"\xff\xff")]:
        with pytest.raises(InputError, match="beyond its last token"):
            unpack(data, sizes, 10 if sizes == (3,) else 5)


def test_the_first_tokens_need_no_more_than_their_blocks(tmp_path: Path) -> None:
    """Damage behind them is not seen; damage within them is."""
    path = tmp_path / "codes.mmt"
    ids = torch.arange(100_000)[:, None] % 1000
    codes = Codes(
        ids=[ids],
        codebook=Codebook(kind="vq", sizes=(1000,)),
        tokenizer="x",
        tokenizer_hash="0" * 64,
        shapes=[(1, 100_000)],
        grids=[(100_000,)],
    )
    write_codes(codes, path)
    data = bytearray(path.read_bytes())
    data[len(data) - 50_000 :] = b"\xaa" * 50_000
    path.write_bytes(data)
    assert torch.equal(read_codes(path, tokens=10_000).ids[0], ids[:10_000])
    with pytest.raises(InputError, match=r"codes\.mmt: damaged \(the check of block"):
        read_codes(path)
    assert read_header(path).counts == [100_000]


def test_mutated_files_give_an_error_or_the_right_codes(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "mutated.mmt"
    said, sound = [], 0
    for _ in range(600):
        codes = random_codes(rng, most=1500)
        spare = random_codes(rng, most=1500)
        data, other = to_bytes(codes), to_bytes(spare)
        for _ in range(int(rng.choice([1, 1, 3]))):
            data = mutate(data, other, rng)
        codes = spare if data == other else codes  # all of it was taken from there
        path.write_bytes(data)
        try:
            got = read_codes(path)
        except InputError as error:
            said.append(str(error))
        else:
            assert_same(got, codes)
        k = int(rng.integers(1, 1500))
        with contextlib.suppress(InputError):  # where the damage lies behind the first tokens
            assert_same(read_codes(path, tokens=k), codes.item(0).trim(k))
            sound += 1
    assert 400 < len(said) < 600
    assert 600 - len(said) < sound < 600
    assert all(text.startswith(str(path)) and "\n" not in text for text in said)
    assert max(map(len, said)) < len(str(path)) + 500


def forged(header: dict[str, Any] | str, payload: bytes = b"", **tensors: bytes) -> bytes:
    """A file whose checksums are right, whatever its header says."""
    if isinstance(header, dict):
        text = json.dumps(header, sort_keys=True, separators=(",", ":"))
        header = json.dumps(
            header | {"~crc32": zlib.crc32(text.encode())}, sort_keys=True, separators=(",", ":")
        )
    outer: dict[str, Any] = {"__metadata__": {"mmt": header}}
    start = 0
    for name, data in {"codes": payload, **tensors}.items():
        end = start + len(data)
        outer[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [start, end]}
        start = end
    text = json.dumps(outer)
    return struct.pack("<Q", len(text)) + text.encode() + payload + b"".join(tensors.values())


HONEST: dict[str, Any] = {
    "version": 1,
    "tokenizer": "x",
    "tokenizer_hash": "0" * 64,
    "kind": "vq",
    "sizes": [[1000, 1]],
    "order": "lsb_first",
    "shapes": [[[1, 10], 1]],
    "grids": [[[10], 1]],
    "counts": [[0, 1]],
    "block_tokens": 8,
}
HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("version 2", {"version": 2}),
    ("2 to 2\\^62", {"sizes": [[1, 1]]}),  # no bits a token: a short file could claim any number
    ("expected at most", {"sizes": [[2, 2**60]]}),
    ("expected at most", {"sizes": [[2**62, 2**14]]}),
    ("blocks of", {"block_tokens": 2**40}),
    ("blocks of", {"sizes": [[2**62, 100]], "block_tokens": 1000}),
    ("at least 1", {"block_tokens": 0}),
    ("at most 201326592", {"shapes": [[[3, 10**6, 10**6], 1]]}),
    ("frames from 0 tokens", {"shapes": [[[5000, 3, 1, 1], 1]]}),
    ("samples from 0 tokens", {"shapes": [[[1, 2**25], 1]]}),
    (
        "in 0 bytes of codes",
        {"shapes": [[[3, 8000, 8000], 2]], "grids": [[[10], 2]], "counts": [[0, 2]]},
    ),
    ("media of shape", {"shapes": [[[3, -1, 5], 1]]}),
    ("media of shape", {"shapes": [[[True, 5], 1]]}),
    ("media of shape", {"shapes": [[[], 1]]}),
    ("token grid", {"grids": [[[10**12], 1]]}),
    ("tokens for a grid", {"counts": [[11, 1]]}),
    ("tokens for a grid", {"counts": [[-1, 1]]}),
    ("tokens for a grid", {"counts": [[True, 1]]}),
    ("as many", {"counts": [[0, 2]]}),
    ("as many", {"counts": [], "shapes": [], "grids": []}),
    ("expected at most", {"counts": [[0, 2**40]]}),
    ("runs must be", {"counts": [[0, -3]]}),
    ("bytes of tensors", {"counts": [[8, 1]]}),
    ("bytes of tensors", {"kept": True}),
    ("kept must be", {"kept": 7}),
    ("meta an object", {"meta": [1]}),
    ("short strings", {"tokenizer": ["x"]}),
    ("short strings", {"tokenizer": "x" * 5000}),
    ("levels", {"levels": [10, 10]}),
    ("order must be", {"order": "up"}),
    ("unreadable", {"sizes": 3}),
    ("unreadable", {"sizes": [[1000]]}),
    ("unreadable", {"shapes": [[3, 1]]}),
]


@pytest.mark.parametrize(("why", "change"), HOSTILE, ids=lambda value: str(value)[:40])
def test_headers_that_lie_are_refused(why: str, change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "hostile.mmt"
    for shape in ([1, 10], [3, 8192, 8192], [4096, 3, 64, 64]):
        path.write_bytes(forged(HONEST | {"shapes": [[shape, 1]]}))
        assert read_codes(path).counts == [0]
    path.write_bytes(forged(HONEST | change))
    with pytest.raises(InputError, match=why):
        read_codes(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n",
        b"\x00" * 100,
        b"\xff" * 100,
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        forged("no json"),
        forged("[1]"),
        forged("[" * 100_000),
        forged('{"version":' + "9" * 5000 + "}"),
        forged('{"version": NaN, "~crc32": 1}'),
        forged(HONEST, b"", more=b"123"),
    ],
    ids=range(12),
)
def test_what_is_no_container_is_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "not.mmt"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_codes(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth):
        made = {"a": made}
    return made


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("at least one", {"ids": [], "shapes": [], "grids": []}),
        ("short strings", {"tokenizer": "x" * 5000}),
        ("as keys", {"meta": {10: 1, 9: 2}}),
        ("as JSON", {"meta": {10: 1, "9": 2}}),
        ("lists", {"meta": {"size": (3, 4)}}),
        ("plain values|unreadable|as JSON", {"meta": nested(100_000)}),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_what_could_not_be_read_is_not_written(
    why: str, change: dict[str, Any], tmp_path: Path
) -> None:
    codes = random_codes(np.random.default_rng(0))
    with pytest.raises(InputError, match=why):
        write_codes(Codes(**vars(codes) | {"positions": None} | change), tmp_path / "x.mmt")
    assert list(tmp_path.iterdir()) == []
