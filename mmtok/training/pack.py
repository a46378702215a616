"""The held-out pack: scenes and clips made of Fashion-MNIST's test photographs alone.

    python -m mmtok.training.pack --data DIR --out eval/data/scenes

The same command makes the same questions and scenes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from mmtok.training import questions as ask
from mmtok.training.clips import PLOTS, render_clip, sample_clip
from mmtok.training.garments import KINDS, Garments, load_garments
from mmtok.training.questions import Question
from mmtok.training.scenes import Scene, render, sample_scene

SEED = 20_000_019
SCENES, CLIPS = 320, 120
# Kinds are not equally frequent and some go together, so that "popular" and "adversarial" differ.
_WEIGHTS = np.array([0.26, 0.18, 0.11, 0.1, 0.15, 0.12, 0.08])
_PARTNER = (1, 0, 3, 2, 0, 2, 5)


def pack_scene(rng: Generator, garments: Garments) -> Scene:
    """A scene of one to six garments (now and then none) with skewed and paired kinds."""
    first = int(rng.choice(len(KINDS), p=_WEIGHTS))
    kinds = [first]
    while len(kinds) < 4:
        last = kinds[-1]
        paired = rng.random() < 0.6
        kinds.append(_PARTNER[last] if paired else int(rng.choice(len(KINDS), p=_WEIGHTS)))
    count = 0 if rng.random() < 0.02 else int(rng.integers(1, 7))
    return sample_scene(rng, garments, count=count, number=0.4, kinds=kinds)


def pope_questions(scenes: list[Scene], rng: Generator) -> dict[str, list[list[Question]]]:
    """POPE's three settings: per scene one kind that is there, then one that is not.

    The absent kind is random, the one in most scenes, or the one most often beside the present one
    (POPE, arXiv:2305.10355).
    """
    shown = [{item.kind for item in scene.items} for scene in scenes]
    popular = Counter(kind for kinds in shown for kind in kinds)
    beside = Counter((a, b) for kinds in shown for a in kinds for b in kinds if a != b)
    splits: dict[str, list[list[Question]]] = {"random": [], "popular": [], "adversarial": []}
    for scene, kinds in zip(scenes, shown, strict=True):
        absent = [kind for kind in range(len(KINDS)) if kind not in kinds]
        for split, found in splits.items():
            if not kinds or not absent:
                found.append([])
                continue
            present = sorted(kinds)[int(rng.integers(len(kinds)))]
            rank = {"random": [0] * len(KINDS), "popular": [popular[k] for k in range(len(KINDS))]}
            rank["adversarial"] = [beside[present, k] for k in range(len(KINDS))]
            missing = max(rng.permutation(absent).tolist(), key=rank[split].__getitem__)
            pair = [ask.existence(scene, present), ask.existence(scene, missing)]
            found.append([replace(question, split=split) for question in pair])
    return splits


def other_questions(scene: Scene, rng: Generator) -> list[Question]:
    """One question of every other sort that the scene can answer."""
    makers = (ask.colour(scene, rng), ask.count(scene, rng), ask.where(scene, rng))
    return [q for q in (*makers, ask.number(scene)) if q is not None]


def write_clip(path: Path, frames: NDArray[np.uint8], fps: int = 4) -> None:
    """Write (T, H, W, 3) uint8 frames as H.264 in MP4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "slow", "threads": "1"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def make_pack(garments: Garments, out: Path, scenes: int = SCENES, clips: int = CLIPS) -> int:
    """Write the pack into `out`; returns the number of questions."""
    for name in ("images", "clips"):
        (out / name).mkdir(parents=True, exist_ok=True)
    rows = [*_scene_rows(garments, out, scenes), *_clip_rows(garments, out, clips)]
    with (out / "questions.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows, start=1):
            file.write(json.dumps({"question_id": number} | row) + "\n")
    return len(rows)


def _scene_rows(garments: Garments, out: Path, scenes: int) -> Iterable[dict[str, object]]:
    """Write the scenes as JPEG; their questions, split by split."""
    rng = np.random.default_rng(SEED)
    made = [pack_scene(rng, garments) for _ in range(scenes)]
    names = [f"images/{number:04d}.jpg" for number in range(scenes)]
    for name, scene in zip(names, made, strict=True):
        Image.fromarray(render(scene, garments)).save(out / name, "JPEG", quality=90)
    for found in pope_questions(made, rng).values():
        for name, pair in zip(names, found, strict=True):
            yield from (_row(question, image=name) for question in pair)
    for name, scene in zip(names, made, strict=True):
        yield from (_row(question, image=name) for question in other_questions(scene, rng))


def _clip_rows(garments: Garments, out: Path, clips: int) -> Iterable[dict[str, object]]:
    """Write the clips as MP4; each has an open question and the same or another as a choice."""
    rng = np.random.default_rng(SEED + 1)
    for number in range(clips):
        clip = sample_clip(rng, garments, PLOTS[number % len(PLOTS)])
        name = f"clips/{number:04d}.mp4"
        write_clip(out / name, render_clip(clip, garments))
        first, second = (clip.questions[int(rng.integers(len(clip.questions)))] for _ in range(2))
        yield _row(first, video=name)
        yield _row(ask.as_choice(second, rng, "video"), video=name)


def _row(question: Question, **medium: str) -> dict[str, object]:
    """One line of questions.jsonl, its id aside."""
    row: dict[str, object] = {"split": question.split, **medium}
    row |= {"text": question.text, "label": question.label}
    if question.options is not None:
        row["options"] = list(question.options)
    return row


def main() -> None:
    """Command line: make the pack."""
    parser = argparse.ArgumentParser(description="make the held-out scenes and questions")
    parser.add_argument("--data", type=Path, required=True, help="folder with FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("eval/data/scenes"))
    options = parser.parse_args()
    number = make_pack(load_garments(options.data, train=False), options.out)
    print(f"{number} questions in {options.out}")


if __name__ == "__main__":
    main()
