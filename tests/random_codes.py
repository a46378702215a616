"""Codes of every kind at random, and damage to the files that hold them."""

from __future__ import annotations

import math

import numpy as np
import torch

from mmtok.codes import Codebook, Codes

SIZES = (2, 3, 5, 7, 512, 1000, 1024, 4096, 16_384, 64_000, 2**18, 2**31 - 1, 2**62)


def random_codes(rng: np.random.Generator, *, most: int = 400) -> Codes:
    """Items of any media; entries looked up or made of levels; prefixes of grids or any places."""
    q, items = int(rng.choice([1, 1, 2, 6])), int(rng.integers(1, 5))
    odd = [int(size) for size in rng.integers(2, 2 ** rng.integers(2, 63, 4))]
    sizes = tuple(int(size) for size in rng.choice([*SIZES, *odd], q))
    levels: tuple[int, ...] = ()
    if rng.random() < 0.3:
        levels = tuple(int(level) for level in rng.integers(2, 17, int(rng.integers(1, 9))))
        sizes = (math.prod(levels),) * q
    counts = [int(rng.integers(0, most)) for _ in range(items)]
    ids = [
        torch.from_numpy(np.stack([rng.integers(0, s, k) for s in sizes], axis=1)) for k in counts
    ]
    grids = [(int(k + rng.integers(1, 50)), *rng.integers(1, 3, 2).tolist()) for k in counts]
    grids = [grid[: int(rng.integers(1, 4))] for grid in grids]
    kept = [
        torch.from_numpy(np.sort(rng.choice(math.prod(grid), k, replace=False)))
        for grid, k in zip(grids, counts, strict=True)
    ]
    return Codes(
        ids=ids,
        codebook=Codebook(
            kind="fsq" if levels else "vq",
            sizes=sizes,
            levels=levels,
            order=str(rng.choice(["lsb_first", "msb_first"])),  # type: ignore[arg-type]
        ),
        tokenizer="patchify(patch=4)",
        tokenizer_hash=rng.bytes(32).hex(),
        shapes=[random_shape(rng) for _ in counts],
        grids=grids,
        positions=kept if rng.random() < 0.3 else None,
        meta={"sample_rate": 24_000, "note": "é\n"},
    )


def random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    """Of a recording, a picture or a clip."""
    height, width, frames = (int(side) for side in rng.integers(1, 300, 3))
    return [(2, height * width), (3, height, width), (frames, 3, height, width)][rng.integers(3)]


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes set, cut off, inserted, moved, or taken from another file."""
    changed, place = bytearray(data), int(rng.integers(0, len(data)))
    length = int(rng.integers(1, 40))
    match int(rng.integers(0, 8)):
        case 0:
            changed[place] ^= 1 << int(rng.integers(0, 8))
        case 1:
            changed[place] = int(rng.integers(0, 256))
        case 2:
            del changed[place:]
        case 3:
            del changed[place : place + length]
        case 4:
            changed[place:place] = rng.bytes(length)
        case 5:
            source = int(rng.integers(0, len(data)))
            changed[place : place + length] = data[source : source + length]
        case 6:
            changed[place:] = other[place:]
        case _:
            digits = [i for i, byte in enumerate(data[:600]) if 48 <= byte < 58]
            changed[int(rng.choice(digits))] = int(rng.integers(48, 58))
    return bytes(changed)
