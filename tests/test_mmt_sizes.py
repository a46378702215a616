"""How large the media may be that a few tokens stand for, and how long lines of hostile files."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtok.codes import MAX_VALUES, Codebook, Codes
from mmtok.errors import InputError
from mmtok.io.mmt import read_codes, write_codes
from tests.test_mmt import HONEST, forged

Shape = tuple[int, ...]


def coded(items: list[tuple[Shape, int]], entries: int = 2**16) -> Codes:
    return Codes(
        ids=[torch.zeros(count, 1, dtype=torch.int64) for _, count in items],
        codebook=Codebook(kind="vq", sizes=(entries,)),
        tokenizer="x",
        tokenizer_hash="0" * 64,
        shapes=[shape for shape, _ in items],
        grids=[(max(count, 1),) for _, count in items],
    )


@pytest.mark.parametrize(
    ("count", "shape", "time"),
    [
        (0, (1, 2**24), 1),
        (1, (1, 2**24 + 2**16), 1),
        (0, (2**12, 3, 8, 8), 0),
        (1, (2**12 + 2**8, 3, 8, 8), 0),
    ],
)
def test_lengths_that_tokens_stand_for(count: int, shape: Shape, time: int, tmp_path: Path) -> None:
    path = tmp_path / "a.mmt"
    write_codes(coded([(shape, count)]), path)
    assert read_codes(path).shapes == [shape]
    longer = tuple(side + (place == time) for place, side in enumerate(shape))
    tokens = "1 token" if count else "0 tokens"
    with pytest.raises(InputError, match=f"{longer[time]} .* from {tokens}, expected at most"):
        write_codes(coded([(longer, count)]), path)


def test_values_that_bytes_stand_for(tmp_path: Path) -> None:
    """Two tokens in 8 bytes, check included, and so 9 of the largest items, but not 10."""
    largest = (3, 8192, 8192)
    assert math.prod(largest) == MAX_VALUES
    items = [(largest, 2), *[(largest, 0)] * 8]
    write_codes(coded(items), tmp_path / "a.mmt")
    assert len(read_codes(tmp_path / "a.mmt").ids) == 9
    with pytest.raises(InputError, match="in 8 bytes of codes"):
        write_codes(coded([*items, ((3, 1, 1), 0)]), tmp_path / "a.mmt")


@pytest.mark.parametrize(
    "items",
    [
        [((3, 3000, 4000), 32)] * 7,
        [((3, 480, 640), 1)] * 1000,
        [((1, 24_000 * 3600), 3600)],
        [((2, 48_000 * 1800), 1800)],
    ],
    ids=["photos", "thumbnails", "an hour", "stereo"],
)
def test_media_of_every_day_are_written(items: list[tuple[Shape, int]], tmp_path: Path) -> None:
    codes = coded(items)
    write_codes(codes, tmp_path / "a.mmt")
    assert read_codes(tmp_path / "a.mmt").shapes == codes.shapes


LONG = "x" * 5000


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": [[[LONG, 3], 1]]},
        {"shapes": [[LONG, 1]]},
        {"grids": [[[LONG], 1]]},
        {"grids": [[[2] * 3000, 1]]},
        {"counts": [[LONG, 1]]},
        {"counts": [[[1] * 3000, 1]]},
        {"order": LONG},
        {"kind": LONG},
        {"version": LONG},
        {"levels": [2**62] * 62},
    ],
    ids=lambda change: str(change)[:20],
)
def test_lines_about_hostile_headers_are_short(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.mmt"
    path.write_bytes(forged(HONEST | change))
    with pytest.raises(InputError) as caught:
        read_codes(path)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_lines_about_hostile_files_are_short(tmp_path: Path) -> None:
    path = tmp_path / "a.mmt"
    text = json.dumps({"codes": {"dtype": LONG, "shape": [0], "data_offsets": [0, 0]}})
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode())
    with pytest.raises(InputError, match=r"damaged or no \.mmt file") as caught:
        read_codes(path)
    assert len(str(caught.value)) < len(str(path)) + 300
