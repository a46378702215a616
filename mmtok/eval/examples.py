"""A few questions with what each variant answered and which tokens it saw."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from mmtok.eval.base import Item, Task
from mmtok.eval.runner import Run, make_prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtok.eval.sweep import TaskSweep, Variant
    from mmtok.models.lvlm import LVLM

MOST_VIEWS = 4
"""Pictures shown of a clip or of a tiled image."""
QUALITY = 72


@dataclass(frozen=True)
class Answer:
    """What one variant made of a question.

    Attributes:
        reduce: the variant's spec.
        text: its answer.
        right: whether that is the label, None where answers are not right or wrong.
        pictures: (title, WebP data URI) of what it saw, the dropped tokens dimmed.
    """

    reduce: str
    text: str
    right: bool | None
    pictures: list[tuple[str, str]]


@dataclass(frozen=True)
class Example:
    """A question with its answers.

    Attributes:
        question: as asked.
        label: the right answer, as text.
        medium: name of the picture or clip.
        differ: whether some of the variants are right and others wrong.
        answers: one per variant shown.
    """

    question: str
    label: str
    medium: str
    differ: bool
    answers: list[Answer]


def examples(
    lvlm: LVLM, found: TaskSweep, variants: Sequence[Variant], count: int
) -> list[Example]:
    """Questions spread over the benchmark, first of all those that not all variants get right.

    Args:
        lvlm: the model, which sees the chosen questions once more, for their tokens.
        found: what was answered.
        variants: those of the sweep; of each series the cheapest is shown.
        count: how many, each about another picture or clip.
    """
    task = found.report.task
    shown = _cheapest(found, variants)
    runs = {run.settings["reduce"]: run for run in found.report.runs}
    some = {variant.spec: runs[variant.spec] for variant in shown}
    verdicts = _verdicts(task, list(some.values()), found.report.parser)
    items = {item.key: item for item in task.items()}
    chosen = _choose([k for k in verdicts if k in items], verdicts, items, count)
    made = [_example(lvlm, task, items[key], shown, some, verdicts[key]) for key in chosen]
    return made


Key = tuple[str, str]
Verdicts = dict[Key, list[bool | None]]


def _cheapest(found: TaskSweep, variants: Sequence[Variant]) -> list[Variant]:
    """The un-pruned model, then of each series the variant with the fewest FLOPs."""
    best: dict[str, tuple[float, Variant]] = {}
    for one, point in zip(variants, found.points, strict=True):
        spent = math.inf if point.flops is None else point.flops
        if one.series not in best or spent < best[one.series][0]:
            best[one.series] = spent, one
    return [one for _, one in best.values()]


def _verdicts(task: Task, runs: Sequence[Run], parser: str) -> Verdicts:
    """Per question that every run answers: which of them are right."""
    by_run = []
    for run in runs:
        said = task.said(run.rows, parser)
        by_run.append(
            {
                (str(row["split"]), str(row["question_id"])): (
                    answer == row["label"] if row["answer_kind"] != "caption" else None
                )
                for row, answer in zip(run.rows, said, strict=True)
                if "error" not in row
            }
        )
    common = [key for key in by_run[0] if all(key in some for some in by_run)]
    return {key: [some[key] for some in by_run] for key in common}


def _choose(
    keys: Sequence[Key], verdicts: Verdicts, items: dict[Key, Item], count: int
) -> list[Key]:
    """Evenly spread, those on which the variants differ first, one a medium."""
    differ = [key for key in keys if len(set(verdicts[key])) > 1]
    rest = [key for key in keys if len(set(verdicts[key])) <= 1]
    chosen: dict[str, Key] = {}
    for pool in (differ, rest):
        fresh = list({items[k].medium: k for k in pool if items[k].medium not in chosen}.values())
        wanted = min(count - len(chosen), len(fresh))
        for i in range(wanted):
            key = fresh[i * len(fresh) // wanted]
            chosen[items[key].medium] = key
    return list(chosen.values())


def _example(
    lvlm: LVLM,
    task: Task,
    item: Item,
    shown: Sequence[Variant],
    runs: dict[str, Run],
    verdicts: Sequence[bool | None],
) -> Example:
    prompt = make_prompt(task, item)
    answers = []
    for variant, right in zip(shown, verdicts, strict=True):
        rows = runs[variant.spec].rows
        row = next(r for r in rows if (str(r["split"]), str(r["question_id"])) == item.key)
        pictures = _pictures(lvlm, variant, prompt)
        answers.append(Answer(variant.spec, str(row["answer"]), right, pictures))
    label = item.label if isinstance(item.label, str) else ""
    return Example(item.text, label, item.medium, len(set(verdicts)) > 1, answers)


def _pictures(lvlm: LVLM, variant: Variant, prompt: Any) -> list[tuple[str, str]]:
    from mmtok.io.overlay import overlay
    from mmtok.pipeline import Pipeline
    from mmtok.views import views

    result = Pipeline(lvlm, variant.reducers).generate_batch([prompt], max_new_tokens=1)
    images, clips, _ = prompt
    frames = [clip if isinstance(clip, Sequence) else clip.frames for clip in clips or ()]
    seen = views(lvlm, result, images or (), frames)
    if len(seen) > MOST_VIEWS:
        seen = [seen[i * len(seen) // MOST_VIEWS] for i in range(MOST_VIEWS)]
    side = 224 if len(seen) == 1 else 150
    return [
        (
            f"{view.title}: {view.kept.sum()} of {view.kept.size} kept",
            data_uri(overlay(view.picture, view.kept, min_side=side, max_side=2 * side)),
        )
        for view in seen
    ]


def data_uri(picture: Image) -> str:
    """A picture as a WebP that stands in the page itself."""
    file = BytesIO()
    picture.save(file, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + b64encode(file.getvalue()).decode()
