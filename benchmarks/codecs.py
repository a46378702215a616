"""Throughput of every tokenizer that needs no download, against the size of the picture.

    python benchmarks/codecs.py [--sides 64 128] [--runs 3]

Those with weights run small random networks: the times say how cost grows with the picture, which
depends on the method, and nothing about published models. Medians of several runs, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from card import card, markdown, save

from mmtok.io.mmt import to_bytes
from mmtok.tokenizers import build

SPECS = [
    "patchify(patch=16)",
    "patchify(patch=4)",
    "patchify(patch=1)",
    "flextok(steps=20)",
    "titok",
    "wetok",
    "hf_vq(family='emu3')",
    "hf_vq(family='janus')",
]


def timed(work: Callable[[], Any], runs: int) -> tuple[Any, float]:
    """(result, median ms), after one run that does not count."""
    done, times = work(), []
    for _ in range(runs):
        start = time.perf_counter()
        done = work()
        times.append(1000 * (time.perf_counter() - start))
    return done, median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [["", "side", "tokens", "bits a token", "bytes in .mmt", "encode ms", "decode ms"]]
    for spec in SPECS:
        tokenizer = build(spec)
        for side in options.sides:
            picture = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
            codes, encode_ms = timed(lambda t=tokenizer, p=picture: t.encode([p]), options.runs)
            _, decode_ms = timed(lambda t=tokenizer, c=codes: t.decode(c), options.runs)
            cells = (f"{codes.codebook.bits:.1f}", f"{len(to_bytes(codes)):,}")
            times = (f"{encode_ms:.1f}", f"{decode_ms:.1f}")
            rows.append([f"`{spec}`", str(side), str(codes.counts[0]), *cells, *times])
    text = card("Tokenizers: tokens, bytes and time against the side of a picture")
    text += "Networks are small and random: see the head of the script.\n\n" + markdown(rows)
    save(f"{Path(__file__).stem}.md", text)


if __name__ == "__main__":
    main()
