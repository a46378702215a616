"""Search a folder by example: tokens of a timm or open_clip tower, pruned, pooled, indexed.

    python examples/vision_pipeline.py FOLDER QUERY.jpg --encoder timm:vit_small_patch14_dinov2 \\
        --pretrained yes

The mean of a picture's surviving patch tokens is its vector; `--keep 1.0` is the plain mean of all
of them, to compare with. Weights are random without --pretrained. Videos, and files that are no
pictures, are named and passed over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import mmtok
from mmtok.io.image import load_image
from mmtok.models.encoders import Encoder
from mmtok.pruning import build
from mmtok.serving.sources import list_sources


def vectors(
    encoder: Encoder, reduce: str, files: Sequence[Path], batch: int = 16
) -> tuple[list[Path], Tensor]:
    """The files that are pictures, and (files, D) unit vectors: means of surviving tokens."""
    (reducer,) = build(reduce)
    named, pooled = list[Path](), list[Tensor]()
    for start in range(0, len(files), batch):
        pictures = {}
        for file in files[start : start + batch]:
            try:
                pictures[file] = load_image(file)
            except mmtok.InputError as error:
                print(f"passed over: {error}", file=sys.stderr)
        if pictures:
            tokens = encoder(list(pictures.values()))
            kept = reducer.select(tokens).apply(tokens.features)
            pooled += [features.float().mean(0) for features in kept]
            named += pictures
    if not pooled:
        raise SystemExit("no picture among them")
    return named, torch.nn.functional.normalize(torch.stack(pooled), dim=-1)


def search(index: Tensor, query: Tensor, most: int = 5) -> list[tuple[int, float]]:
    """Rows of the index nearest to a vector, with their cosine similarity."""
    score, row = (index @ query).topk(min(most, len(index)))
    return list(zip(row.tolist(), score.tolist(), strict=True))


def main(arguments: Sequence[str] | None = None) -> list[tuple[str, float]]:
    """Print and return names and similarities, the nearest first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("query", type=Path)
    parser.add_argument("--encoder", default="timm:vit_small_patch14_dinov2")
    parser.add_argument("--pretrained", default=None, help="A tag for open_clip, 'yes' for timm.")
    parser.add_argument("--reduce", default="visionzip(keep={keep})")
    parser.add_argument("--keep", type=float, default=0.25)
    args = parser.parse_args(arguments)
    encoder = mmtok.load_encoder(args.encoder, pretrained=args.pretrained)
    spec = args.reduce.format(keep=args.keep)
    files = [source.path for source in list_sources(args.folder)]
    files, index = vectors(encoder, spec, files)
    _, (query,) = vectors(encoder, spec, [args.query])
    found = [(files[row].name, score) for row, score in search(index, query)]
    for name, score in found:
        print(f"{score:.3f}  {name}")
    return found


if __name__ == "__main__":
    main()
