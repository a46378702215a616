"""Clips: eight frames of one scene in which something appears, leaves or moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mmtok.training.garments import KINDS, Garments
from mmtok.training.questions import Question, as_choice
from mmtok.training.scenes import CANVAS, Item, Number, Scene, make_item, place, render

FRAMES = 8
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
PLOTS = ("order", "motion", "tally")
"""What happens: items take turns; one moves; items come or go one by one."""
SHARES = (0.25, 0.45, 0.3)
"""How often each plot is drawn: which way something moves takes longest to learn."""


@dataclass(frozen=True)
class Clip:
    """Frames of one background and the open questions they answer."""

    plot: str
    frames: tuple[Scene, ...]
    questions: tuple[Question, ...]


def sample_clip(rng: Generator, garments: Garments, plot: str | None = None) -> Clip:
    """Invent a clip, of a random plot unless one of `PLOTS` is given."""
    plot = str(rng.choice(PLOTS, p=SHARES)) if plot is None else plot
    makers = {"order": _order, "motion": _motion, "tally": _tally}
    items, questions = makers[plot](rng, garments)
    seed, shapes = int(rng.integers(2**31)), int(rng.integers(0, 4))
    frames = tuple(Scene(tuple(shown), None, seed, CANVAS, shapes) for shown in items)
    ending = len(frames[-1].items)
    if plot != "order":
        text = "How many items are in the video at the end?"
        questions.append(Question("clip", text, str(ending)))
    return Clip(plot, frames, tuple(questions))


def render_clip(clip: Clip, garments: Garments) -> NDArray[np.uint8]:
    """Draw every frame, (8, 112, 112, 3) uint8."""
    return np.stack([render(frame, garments) for frame in clip.frames])


def training_questions(clip: Clip, rng: Generator) -> list[Question]:
    """The clip's questions, open and as choices, and whether some kinds are to be seen."""
    found = list(clip.questions)
    found += [as_choice(question, rng, "video") for question in clip.questions for _ in range(2)]
    shown = {item.kind for frame in clip.frames for item in frame.items}
    for kind in rng.permutation(len(KINDS))[:3].tolist():
        text = f"Is there a {KINDS[kind]} in the video?"
        found.append(Question("clip", text, "yes" if kind in shown else "no"))
    return found


def _scatter(rng: Generator, garments: Garments, kinds: list[int], taken: list[Item]) -> list[Item]:
    """One garment of each of `kinds` beside those `taken`, as far as there is room."""
    placed: list[Item] = []
    for kind in kinds:
        blocked: list[Item | Number] = [*taken, *placed]
        item = place(rng, make_item(rng, garments, kind), blocked, CANVAS)
        if item is not None:
            placed.append(item)
    return placed


def _order(rng: Generator, garments: Garments) -> tuple[list[list[Item]], list[Question]]:
    """Two or three kinds take turns; at the end only the last is there."""
    kinds = rng.permutation(len(KINDS))[: int(rng.integers(2, 4))].tolist()
    items = _scatter(rng, garments, kinds, [])
    cuts = [0, int(rng.integers(3, 6))]
    if len(items) == 3:
        cuts = [0, int(rng.integers(2, 4)), int(rng.integers(5, 7))]
    cuts = [*cuts[: len(items)], FRAMES]
    frames: list[list[Item]] = [[] for _ in range(FRAMES)]
    for index, item in enumerate(items):
        stay = int(rng.integers(0, 2)) if index + 1 < len(items) else 0
        for frame in range(cuts[index], min(cuts[index + 1] + stay, FRAMES)):
            frames[frame].append(item)
    first, last = KINDS[items[0].kind], KINDS[items[-1].kind]
    questions = [
        Question("clip", "What appears first in the video?", first),
        Question("clip", "What appears last in the video?", last),
    ]
    return frames, questions


def _motion(rng: Generator, garments: Garments) -> tuple[list[list[Item]], list[Question]]:
    """One garment moves straight by 35 to 60 pixels, up to two others stay."""
    kinds = rng.permutation(len(KINDS))[:3].tolist()
    way = list(WAYS)[int(rng.integers(4))]
    far = float(rng.uniform(35, 60))
    dx, dy = WAYS[way][0] * far, WAYS[way][1] * far
    item = make_item(rng, garments, kinds[0])
    half = (item.half_width, item.half_height)
    wide = replace(item, half_width=half[0] + abs(dx) / 2, half_height=half[1] + abs(dy) / 2)
    path = place(rng, wide, [], CANVAS)
    if path is None:
        raise ValueError("a moving garment does not fit the canvas")
    others = _scatter(rng, garments, kinds[1 : 1 + int(rng.integers(0, 3))], [path])
    start = replace(path, half_width=half[0], half_height=half[1]).moved(-dx / 2, -dy / 2)
    steps = np.linspace(0, 1, FRAMES).tolist()
    frames = [[*others, start.moved(dx * s, dy * s)] for s in steps]
    text = f"Which way does the {KINDS[kinds[0]]} move in the video?"
    return frames, [Question("clip", text, way)]


def _tally(rng: Generator, garments: Garments) -> tuple[list[list[Item]], list[Question]]:
    """Items come, or go, one by one; at least one is left at the end."""
    kinds = rng.integers(0, len(KINDS), int(rng.integers(2, 7))).tolist()
    items = _scatter(rng, garments, kinds, [])
    comes = bool(rng.random() < 0.5)
    turns = len(items) - 1
    times = sorted(rng.choice(np.arange(1, FRAMES), turns, replace=False).tolist())
    if comes:
        shown = [1 + sum(t <= frame for t in times) for frame in range(FRAMES)]
        return [items[:n] for n in shown], []
    leave = int(rng.integers(0, turns + 1))
    gone = [sum(t <= frame for t in times[:leave]) for frame in range(FRAMES)]
    return [items[n:] for n in gone], []
