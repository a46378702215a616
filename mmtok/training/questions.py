"""Questions about scenes, with labels that are right by construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from numpy.random import Generator

from mmtok.training.garments import KINDS, PLURALS
from mmtok.training.scenes import COLOURS, Item, Scene

LETTERS = "ABCD"
CHOICE = (
    "Select the best answer to the following multiple-choice question based on the {medium}. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n"
    "{question}\n{options}\nThe best answer is:"
)
"""Video-MME's official wording (`medium` is "video" there)."""


@dataclass(frozen=True)
class Question:
    """A question, its one right answer and, for a choice, the options.

    Attributes:
        split: what is asked for: existence, colour, count, where, number or clip; in training
            also kind and which.
        text: the question as the model reads it; for a choice the whole prompt.
        label: the right answer; for a choice its letter.
        options: the four options of a choice, else None.
    """

    split: str
    text: str
    label: str
    options: tuple[str, ...] | None = None


def existence(scene: Scene, kind: int) -> Question:
    """POPE's question: is there a garment of `kind`?"""
    label = "yes" if scene.count(kind) else "no"
    return Question("existence", f"Is there a {KINDS[kind]} in the image?", label)


def colour(scene: Scene, rng: Generator) -> Question | None:
    """What colour is a kind whose garments all have one colour?"""
    tints: dict[int, set[int]] = {}
    for item in scene.items:
        tints.setdefault(item.kind, set()).add(item.colour)
    plain = [kind for kind, found in sorted(tints.items()) if len(found) == 1]
    if not plain:
        return None
    kind = plain[int(rng.integers(len(plain)))]
    (tint,) = tints[kind]
    return Question("colour", f"What colour is the {KINDS[kind]}?", COLOURS[tint])


def count(scene: Scene, rng: Generator) -> Question:
    """How many items are there in all, or of one kind (one of those present, if any)?"""
    if not scene.items or rng.random() < 0.4:
        return Question("count", "How many items are in the image?", str(len(scene.items)))
    kinds = sorted({item.kind for item in scene.items})
    kind = kinds[int(rng.integers(len(kinds)))]
    return Question("count", f"How many {PLURALS[kind]} are in the image?", str(scene.count(kind)))


def where(scene: Scene, rng: Generator, apart: float = 16, beside: float = 0.6) -> Question | None:
    """Where is a kind that is there once: in which half, or (`beside`) seen from another?"""
    single = [item for item in scene.items if scene.count(item.kind) == 1]
    if not single:
        return None
    item = single[int(rng.integers(len(single)))]
    others = [other for other in single if other is not item]
    if others and rng.random() < beside:
        other = others[int(rng.integers(len(others)))]
        return _where_beside(item, other, rng, apart)
    across, middle = bool(rng.random() < 0.5), scene.size / 2
    place = item.x if across else item.y
    if abs(place - middle) < apart / 2:
        return None
    sides = ("left", "right") if across else ("top", "bottom")
    text = f"Is the {KINDS[item.kind]} in the {sides[0]} or the {sides[1]} half of the image?"
    return Question("where", text, sides[int(place > middle)])


def _where_beside(item: Item, other: Item, rng: Generator, apart: float) -> Question | None:
    """Where is `item` seen from `other`? None if they are too close to tell."""
    across = bool(rng.random() < 0.5)
    gap = item.x - other.x if across else item.y - other.y
    if abs(gap) < apart:
        return None
    name, beside = KINDS[item.kind], KINDS[other.kind]
    if across:
        text = f"Is the {name} to the left or to the right of the {beside}?"
        return Question("where", text, "right" if gap > 0 else "left")
    text = f"Is the {name} above or below the {beside}?"
    return Question("where", text, "below" if gap > 0 else "above")


def number(scene: Scene) -> Question | None:
    """What number is printed?"""
    if scene.number is None:
        return None
    return Question("number", "What number is printed in the image?", scene.number.digits)


def choice(
    question: str, answer: str, others: Sequence[str], rng: Generator, medium: str, split: str
) -> Question:
    """A four-option question: `answer` and three of `others`, in random order."""
    wrong = [others[i] for i in rng.permutation(len(others))[:3]]
    options = [[answer, *wrong][i] for i in rng.permutation(4)]
    lines = "\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, options, strict=True))
    text = CHOICE.format(medium=medium, question=question, options=lines)
    return Question(split, text, LETTERS[options.index(answer)], tuple(options))


def kind(scene: Scene, rng: Generator) -> Question | None:
    """What kind has a colour that only garments of one kind have?"""
    found: dict[int, set[int]] = {}
    for item in scene.items:
        found.setdefault(item.colour, set()).add(item.kind)
    plain = [tint for tint, kinds in sorted(found.items()) if len(kinds) == 1]
    if not plain:
        return None
    tint = plain[int(rng.integers(len(plain)))]
    (answer,) = found[tint]
    return Question("kind", f"What kind of garment is {COLOURS[tint]}?", KINDS[answer])


def which(scene: Scene, rng: Generator) -> Question | None:
    """Which of four kinds is there? None unless some are and three are not."""
    present = sorted({item.kind for item in scene.items})
    absent = [KINDS[kind] for kind in range(len(KINDS)) if kind not in present]
    if not present or len(absent) < 3:
        return None
    answer = KINDS[present[int(rng.integers(len(present)))]]
    return choice("Which garment is in the image?", answer, absent, rng, "image", "which")


def as_choice(question: Question, rng: Generator, medium: str = "image") -> Question:
    """The same question with four options; its answer must be a kind, colour or number."""
    label = question.label
    pools: tuple[Sequence[str], ...] = (KINDS, COLOURS, ("left", "right", "up", "down"))
    for pool in pools:
        if label in pool:
            others = [word for word in pool if word != label]
            return choice(question.text, label, others, rng, medium, question.split)
    others = [str(n) for n in range(7) if str(n) != label]
    return choice(question.text, label, others, rng, medium, question.split)


def scene_questions(scene: Scene, rng: Generator, kinds: int = 4) -> list[Question]:
    """A mixed set for training: existence of some kinds and one or two of every other sort."""
    present = sorted({item.kind for item in scene.items})
    absent = [kind for kind in range(len(KINDS)) if kind not in present]
    found = [existence(scene, k) for k in rng.permutation(present)[: kinds // 2]]
    found += [existence(scene, k) for k in rng.permutation(absent)[: kinds - len(found)]]
    makers: tuple[Callable[[], Question | None], ...] = (
        lambda: colour(scene, rng),
        lambda: colour(scene, rng),
        lambda: kind(scene, rng),
        lambda: kind(scene, rng),
        lambda: count(scene, rng),
        lambda: count(scene, rng),
        lambda: count(scene, rng),
        lambda: where(scene, rng, beside=0),
        lambda: where(scene, rng, beside=0),
        lambda: where(scene, rng, beside=1),
        lambda: number(scene),
    )
    made = [question for maker in makers if (question := maker()) is not None]
    closed = [q for q in made if q.split in ("colour", "count")]
    if closed:
        made.append(as_choice(closed[int(rng.integers(len(closed)))], rng))
    if (asked := which(scene, rng)) is not None:
        made.append(asked)
    return list(dict.fromkeys(found + made))
