"""Throughput of every tokenizer, and how its time grows with the size of the media.

    python benchmarks/codecs.py [--only titok wavtokenizer] [--runs 3]

Networks have the sizes that the page states: those of a published model, with random weights, where
one thread runs it in a second or two, else the same layout with less width or depth. Times are
medians of several runs on one thread, after one that does not count; growth is by least squares
over three sizes.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import torch
from card import card, markdown, save
from codec_rows import ROWS, Row
from torch import Tensor

from mmtok.io.mmt import to_bytes
from mmtok.models.zoo import embedded_tokenizers
from mmtok.tokenizers import Tokenizer, build, registry


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Media of three sizes: sides, frames or seconds."""

    title: str
    unit: str
    sizes: tuple[int, ...]


KINDS = {
    "picture": Kind(title="Pictures, by side in px", unit="Mpixel/s", sizes=(64, 128, 256)),
    "clip": Kind(title="Clips of 64 x 64 px, by frames", unit="frames/s", sizes=(5, 9, 17)),
    "sound": Kind(title="Recordings, by seconds", unit="s/s", sizes=(1, 2, 4)),
}
ENOUGH_S = 2.0  # of runs of one kind


def media(kind: str, tokenizer: Tokenizer) -> Iterator[tuple[float, Tensor]]:
    """(size, item) of three sizes: in megapixels, frames or seconds."""
    draw = torch.Generator().manual_seed(0)
    for size in KINDS[kind].sizes:
        if kind == "sound":
            shape = (tokenizer.channels, size * (tokenizer.sample_rate or 1))
            yield size, 0.5 - torch.rand(shape, generator=draw)
        elif kind == "clip":
            yield size, torch.rand((size, 3, 64, 64), generator=draw)
        else:
            yield size**2 / 1e6, torch.rand((3, size, size), generator=draw)


def timed(work: Callable[[], Any], runs: int) -> tuple[Any, float]:
    """(result, median ms), after one run that does not count; fewer runs where they take long."""
    done, times = work(), []
    while len(times) < runs and sum(times) < 1000 * ENOUGH_S:
        start = time.perf_counter()
        done = work()
        times.append(1000 * (time.perf_counter() - start))
    return done, median(times)


def growth(sizes: list[float], times_ms: list[float]) -> str:
    """The power of the size that time goes with."""
    logs = [[math.log(value) for value in values] for values in (sizes, times_ms)]
    return f"{linear_regression(*logs).slope:.2f}"


def measured(row: Row, folder: Path, runs: int) -> list[str]:
    """The row of the table."""
    spec = row.spec
    if row.saved is not None:
        row.saved(folder)
        name, _, arguments = spec.rstrip(")").partition("(")
        spec = f"{name}(weights={str(folder)!r}, {arguments})"
    tokenizer = build(spec)
    sizes, encode_ms, decode_ms = [], [], []
    for size, item in media(row.kind, tokenizer):
        codes, ms = timed(lambda x=item: tokenizer.encode([x]), runs)
        sizes.append(size)
        encode_ms.append(ms)
        decode_ms.append(timed(lambda c=codes: tokenizer.decode(c), runs)[1])
    cells = [f"`{row.spec}`", row.sizes, str(codes.counts[0]), f"{codes.codebook.bits:.1f}"]
    cells.append(f"{len(to_bytes(codes)):,}")
    for times in (encode_ms, decode_ms):
        cells.append(" / ".join(f"{ms:.0f}" if ms >= 10 else f"{ms:.1f}" for ms in times))
        cells += [growth(sizes, times), f"{1000 * sizes[-1] / times[-1]:.3g}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    known = {*registry.names(), *embedded_tokenizers()}
    parser.add_argument(
        "--only", nargs="+", choices=sorted(known), help="print these, save no page"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if missing := known - {row.spec.split("(")[0] for row in ROWS}:
        raise SystemExit(f"no row for {', '.join(sorted(missing))}")
    tables: dict[str, list[list[str]]] = {}
    for row in ROWS:
        if options.only and row.spec.split("(")[0] not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            cells = measured(row, Path(folder), options.runs)
        print(*cells, sep="  ", file=sys.stderr)
        kind = KINDS[row.kind]
        if row.kind not in tables:
            sizes = " / ".join(map(str, kind.sizes))
            work = [f"encode ms, {sizes}", "growth", kind.unit]
            work += [f"decode ms, {sizes}", "growth", kind.unit]
            tables[row.kind] = [["", "network", "tokens", "bits a token", "bytes in .mmt", *work]]
        tables[row.kind].append(cells)
    text = card("Tokenizers: time against the size of the media")
    text += (
        "Networks are random where they do not ship; tokens, bytes and throughput are those of the "
        "largest size. A growth of g: time goes with the g-th power of pixels, frames or seconds. "
        "Models of one size scale pictures to it.\n"
    )
    for name, table in tables.items():
        text += f"\n## {KINDS[name].title}\n\n" + markdown(table)
    if options.only:
        print(text)
    else:
        save(f"{Path(__file__).stem}.md", text)


if __name__ == "__main__":
    main()
