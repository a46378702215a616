"""The thresholds of `tokencorr`, chosen on training scenes of the embedded model.

    python benchmarks/tokencorr.py --photos FOLDER [--scenes 200]

Rendered scenes tell which patches hold a garment or a number. The pair of thresholds wins whose
redundant patches agree best with background: mean of the two shares told right. FOLDER holds
Fashion-MNIST in torchvision's layout, or receives it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from card import card, markdown, save
from PIL import Image
from torch import Tensor

import mmtok
from mmtok.accounting.timing import StageTimer
from mmtok.models.encoder_seam import encode
from mmtok.models.families import family_of
from mmtok.models.visual import describe
from mmtok.pruning.greedy import unit
from mmtok.pruning.methods.tokencorr import redundant
from mmtok.training.garments import load_garments
from mmtok.training.scenes import CANVAS, PATCH, render, sample_scene

SIMILARITY = [round(0.05 * i, 2) for i in range(2, 20)]
REPEATS = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4]


def scenes(photos: str, count: int) -> tuple[list[Image.Image], Tensor]:
    """Pictures of training photographs, and (count, patches) bool: does a patch hold something?"""
    garments, rng = load_garments(photos, train=True), np.random.default_rng(20)
    side = CANVAS // PATCH
    pictures, there = [], []
    for _ in range(count):
        scene, owner = sample_scene(rng, garments), np.zeros((CANVAS, CANVAS), np.int8)
        pictures.append(Image.fromarray(render(scene, garments, owner)))
        if (label := scene.number) is not None:
            rows = slice(int(label.y - label.half_height), int(label.y + label.half_height))
            columns = slice(int(label.x - label.half_width), int(label.x + label.half_width))
            owner[rows, columns] = 1
        cells = (owner > 0).reshape(side, PATCH, side, PATCH).mean((1, 3))
        there.append(cells.flatten() > 0.1)
    return pictures, torch.tensor(np.stack(there))


def keys(pictures: list[Image.Image]) -> Tensor:
    """(pictures, patches, Dk) keys of the tower's last layer."""
    lvlm = mmtok.load("tiny")
    found = []
    for start in range(0, len(pictures), 20):
        inputs = lvlm.inputs_batch([([p], None, "x") for p in pictures[start : start + 20]])
        with torch.inference_mode():
            facts, wants = (lvlm.model, family_of(lvlm.model), inputs), {"keys"}
            encoded = encode(*facts, wants, StageTimer())
            [media] = describe(*facts, encoded, wants, StageTimer())
        found.append(media.tokens.keys)
    return torch.cat(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--scenes", type=int, default=200)
    args = parser.parse_args()
    pictures, there = scenes(args.photos, args.scenes)
    units = [unit(key) for key in keys(pictures)]
    crop = torch.zeros(there.shape[1], dtype=torch.int64)
    table, best = [["alike above", *(f"repeats {share:.0%}" for share in REPEATS)]], (0.0, 0.0, 0.0)
    for similarity in SIMILARITY:
        row = [f"{similarity:.2f}"]
        for repeats in REPEATS:
            spare = torch.stack([redundant(key, crop, similarity, repeats) for key in units])
            right = ((~spare)[there].float().mean() + spare[~there].float().mean()) / 2
            row.append(f"{100 * float(right):.1f}")
            best = max(best, (float(right), similarity, repeats))
        table.append(row)
    text = card("Thresholds of tokencorr on training scenes")
    text += (
        f"Percent told right, mean over patches with a garment or number and without, "
        f"{args.scenes} scenes. Best: similarity {best[1]}, repeats {best[2]} "
        f"({100 * best[0]:.1f}%).\n\n"
    )
    save("tokencorr.md", text + markdown(table))


if __name__ == "__main__":
    main()
