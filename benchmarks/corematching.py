"""How CoreMatching's rho and beta were chosen: answers to questions about training scenes.

    python benchmarks/corematching.py --data DIR [--scenes 40]

DIR holds FashionMNIST/raw. The scenes are made of its training photographs, those of the held-out
pack of its test photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from card import card, markdown, save
from PIL import Image

import mmtok
from mmtok.training.garments import load_garments
from mmtok.training.questions import scene_questions
from mmtok.training.scenes import render, sample_scene

RHOS = (0.0, 0.5, 0.8, 0.95)
BETAS = (0.1, 0.2, 0.4, 1.0)
SPLITS = ("existence", "colour", "number")  # what the embedded model answers well
SEED = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--keep", type=float, default=0.2)
    options = parser.parse_args()
    garments, rng = load_garments(options.data, train=True), np.random.default_rng(SEED)
    prompts, labels = [], []
    for _ in range(options.scenes):
        scene = sample_scene(rng, garments)
        picture = Image.fromarray(render(scene, garments))
        asked = [q for q in scene_questions(scene, rng) if q.split in SPLITS]
        for place in rng.permutation(len(asked))[:4]:
            prompts.append(([picture], None, asked[place].text))
            labels.append(asked[place].label)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][2]))  # little padding
    prompts, labels = [prompts[i] for i in order], [labels[i] for i in order]
    lvlm = mmtok.load("tiny", device="cpu")

    def right(reduce: str | None) -> float:
        pipe, texts = mmtok.Pipeline(lvlm, reduce=reduce), []
        for start in range(0, len(prompts), 32):
            texts += pipe.generate_batch(prompts[start : start + 32], max_new_tokens=6).texts
        pairs = zip(texts, labels, strict=True)
        return sum(t.strip().rstrip(".").lower() == label.lower() for t, label in pairs) / len(
            labels
        )

    rows = [["rho", *(f"beta {beta}" for beta in BETAS)]]
    for rho in RHOS:
        scores = [
            right(f"corematching(keep={options.keep}, rho={rho}, beta={beta})") for beta in BETAS
        ]
        rows.append([str(rho), *(f"{score:.3f}" for score in scores)])
        print(rows[-1], flush=True)
    text = card("CoreMatching: rho and beta on training scenes")
    text += (
        f"Share of {len(labels)} questions ({', '.join(SPLITS)}) about {options.scenes} training "
        f"scenes that the embedded model answers word for word, at keep={options.keep}; all tokens "
        f"and neurons: {right(None):.3f}.\n\n"
    )
    save("corematching.md", text + markdown(rows))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
