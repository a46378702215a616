"""Score a model on the held-out pack, per kind of question.

    python -m mmtok.training.score --model mmtok/models/data/tiny --pack eval/data/scenes

An answer counts if greedy decoding would give exactly the label and then stop. All questions about
one picture or clip are answered in one pass (see `sequences`).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import LlavaForConditionalGeneration

from mmtok.training.pool import encode
from mmtok.training.questions import Question
from mmtok.training.sequences import answer_scores, pack_questions, question_ids
from mmtok.training.tokens import build_tokenizer

POPE = ("random", "popular", "adversarial")


def load_medium(path: Path) -> NDArray[np.uint8]:
    """Frames of an image (one) or of a video (all), (T, H, W, 3) uint8."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames)
    return np.asarray(Image.open(path).convert("RGB"))[None]


@torch.no_grad()
def answers(
    model: LlavaForConditionalGeneration, images: NDArray[np.uint8], asked: Sequence[Question]
) -> list[tuple[bool, int]]:
    """For each question about `images`: is the answer wholly right, and its first token's id."""
    tokenizer = build_tokenizer()
    features = encode(model, images).to(model.dtype).flatten(0, 1)[None]
    sequences = pack_questions(tokenizer, [asked], len(images))
    scores, targets = answer_scores(model, sequences, features)
    best = scores.argmax(-1)
    found, spot = [], 0
    for question in asked:
        length = question_ids(tokenizer, question)[1]
        right = bool((best[spot : spot + length] == targets[spot : spot + length]).all())
        found.append((right, int(best[spot])))
        spot += length
    return found


def score_pack(model: LlavaForConditionalGeneration, pack: Path) -> dict[str, dict[str, float]]:
    """Accuracy per split of a pack, and F1 (of "yes"), precision and recall of POPE's splits."""
    lines = (pack / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    media: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        row = json.loads(line)
        media[row.get("image") or row["video"]].append(row)
    yes = build_tokenizer().convert_tokens_to_ids("yes")
    outcomes: dict[str, list[tuple[bool, bool, bool]]] = defaultdict(list)
    for name, rows in media.items():
        asked = [Question(r["split"], r["text"], r["label"], _options(r)) for r in rows]
        found = answers(model, load_medium(pack / name), asked)
        for row, (right, first) in zip(rows, found, strict=True):
            outcome = (right, first == yes, row["label"] == "yes")
            splits = [row["split"]]
            if row["split"] == "clip":
                splits.append("clip-choice" if "options" in row else "clip-open")
            if row["split"] in POPE:
                splits.append("existence")
            for split in splits:
                outcomes[split].append(outcome)
    return {split: _figures(split, found) for split, found in sorted(outcomes.items())}


def _options(row: dict[str, Any]) -> tuple[str, ...] | None:
    """The options of a row, if it is a choice."""
    return tuple(row["options"]) if "options" in row else None


def _figures(split: str, outcomes: Sequence[tuple[bool, bool, bool]]) -> dict[str, float]:
    """n, accuracy and, for yes/no questions, precision, recall, F1 and the share of yes."""
    n = len(outcomes)
    figures = {"n": float(n), "accuracy": sum(right for right, _, _ in outcomes) / n}
    if split in (*POPE, "existence"):
        hits = sum(said and true for _, said, true in outcomes)
        said = sum(said for _, said, _ in outcomes)
        true = sum(true for _, _, true in outcomes)
        figures["precision"] = hits / max(said, 1)
        figures["recall"] = hits / max(true, 1)
        figures["f1"] = 2 * hits / max(said + true, 1)
        figures["yes_ratio"] = said / n
    return figures


def table(figures: dict[str, dict[str, float]]) -> str:
    """The figures as a Markdown table."""
    lines = ["| split | n | accuracy | F1 |", "| --- | --- | --- | --- |"]
    for split, row in figures.items():
        f1 = f"{row['f1']:.3f}" if "f1" in row else ""
        lines.append(f"| {split} | {row['n']:.0f} | {row['accuracy']:.3f} | {f1} |")
    return "\n".join(lines)


def main() -> None:
    """Command line: print the table, then the figures as JSON."""
    parser = argparse.ArgumentParser(description="score a model on the held-out pack")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pack", type=Path, default=Path("eval/data/scenes"))
    options = parser.parse_args()
    model = LlavaForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32)
    figures = score_pack(model.eval(), options.pack)
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
