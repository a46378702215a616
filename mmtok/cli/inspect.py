"""`mmtok inspect`: what is in .mmt files, and whether they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmtok.cli import options as opt
from mmtok.cli.items import find_files, finish, run_all
from mmtok.cli.output import answer, printable


def inspect(files: opt.CodeFiles, as_json: opt.Json = False) -> None:
    """Say what codes hold; every checksum is verified."""
    found = [file for file, _ in find_files(files, [".mmt"])]
    done, failed = run_all(found, lambda path: path, _inspect_file)
    if as_json:
        answer({"items": done, "failed": failed})
    else:
        for item in done:
            lines = (printable(f"{key}: {value}") for key, value in item.items())
            print("\n".join(lines), end="\n\n")
    finish(done, failed)


def _inspect_file(path: Path) -> dict[str, Any]:
    from mmtok.io.mmt import read_codes

    codes = read_codes(path)
    book = codes.codebook
    return {
        "path": str(path),
        "tokenizer": codes.tokenizer,
        "tokenizer_hash": codes.tokenizer_hash,
        "codebook": book.kind,
        "codebooks": len(book.sizes),
        "entries": book.sizes[0] if len(set(book.sizes)) == 1 else list(book.sizes),
        "levels": list(book.levels),
        "order": book.order,
        "items": len(codes.ids),
        "tokens": sum(codes.counts),
        "bits_per_token": book.bits,
        "bits": codes.bits,
        "bytes": path.stat().st_size,
        "shapes": [list(shape) for shape in codes.shapes],
        "grids": [list(grid) for grid in codes.grids],
        "counts": codes.counts,
        "prefix": codes.positions is None,
        "meta": codes.meta,
    }
