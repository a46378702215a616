"""Train the embedded model `tiny`, from nothing to a folder that plain transformers can load.

    python -m mmtok.training.tiny --data DIR --out runs/tiny --hours 1

Runs on a CPU or a GPU, writes a checkpoint every few minutes and continues from it when it is
started again. Stage 1 (`dense`) trains the vision tower, `align` fits the projector to word
embeddings, stage 2 (`language`) trains projector and language model; then the model is exported
and scored on the held-out pack.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from mmtok.training.align import align
from mmtok.training.dense import DenseBeside, DenseSettings, fit_heads, train_tower
from mmtok.training.garments import load_garments
from mmtok.training.language import LanguageSettings, LanguageTrainer
from mmtok.training.model import build_model, export
from mmtok.training.scenes import render, sample_scene
from mmtok.training.score import score_pack, table
from mmtok.training.tower import DenseHeads, build_tower, run_tower, to_pixels


def train(
    data: Path,
    out: Path,
    hours: float,
    device: str = "cpu",
    seed: int = 0,
    start: Path | None = None,
) -> LlavaForConditionalGeneration:
    """Run both stages, or what is left of them.

    Args:
        data: folder with FashionMNIST/raw.
        out: folder for checkpoints.
        hours: wall time of both stages together; the learning rates follow it.
        device: torch device.
        seed: of weights, scenes and questions.
        start: folder of an exported model whose tower is trained on; by default a new one.

    Returns:
        the trained model, float32.
    """
    garments = load_garments(data, train=True)
    tower = build_tower(seed=seed).to(device)
    heads = DenseHeads(tower.config.hidden_size).to(device)
    seconds, share = hours * 3600, 0.5
    dense = DenseSettings(seconds=seconds * share, seed=3 * seed + 1)
    if start is not None:
        share = 0.25
        dense = replace(dense, seconds=seconds * share, windows=0.0, lr=1.2e-3, decay=0.85)
        if not (out / "dense.pt").exists():
            old = LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
            tower.load_state_dict(old.model.vision_tower.state_dict())
            _say(f"read-outs fitted, loss {fit_heads(tower, heads, garments, seed):.3f}")
    train_tower(tower, heads, garments, dense, out, _say)
    model = build_model(tower, seed).to(device)
    rng = np.random.default_rng(seed)
    scenes = [render(sample_scene(rng, garments, number=0.6), garments) for _ in range(256)]
    with torch.no_grad():
        hidden = run_tower(tower, to_pixels(np.stack(scenes)).to(device))
    _say(f"aligned, {align(model, heads, hidden, steps=500):.3f} of the variance left")
    rest = seconds * (1 - share)
    further = DenseSettings(0.23 * rest, windows=0.0, lr=1e-3, decay=0.9, seed=3 * seed + 3)
    beside = DenseBeside(model.model.vision_tower, heads, garments, further)
    language = LanguageSettings(seconds=rest, seed=3 * seed + 2)
    LanguageTrainer(model, garments, language, out, beside).train(_say)
    return model.eval()


def _say(line: str) -> None:
    """Print one line of progress at once."""
    print(line, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the embedded model tiny")
    parser.add_argument("--data", type=Path, required=True, help="folder with FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads, by default all")
    parser.add_argument("--start", type=Path, help="exported model whose tower to train on")
    parser.add_argument("--pack", type=Path, default=Path("eval/data/scenes"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = train(
        options.data, options.out, options.hours, options.device, options.seed, options.start
    )
    export(model.cpu(), options.out / "export")
    figures = score_pack(model, options.pack)
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    _say(table(figures))


if __name__ == "__main__":
    main()
