"""Ask a model every question of a task, and write each answer down before the next is asked.

A run can be killed at any point: it goes on from the answers that are on the disk. A batch that
fails is tried again prompt by prompt, so that a bad file costs its own rows, which say what is
wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtok.errors import InputError
from mmtok.eval.base import Item, Task
from mmtok.eval.batches import Batch
from mmtok.eval.damage import check_costs, check_predictions
from mmtok.eval.records import Records, locked
from mmtok.io.files import reason
from mmtok.io.image import load_image
from mmtok.io.video import load_video
from mmtok.models.counts import tokens_per_prompt

if TYPE_CHECKING:
    from mmtok.models.lvlm import Prompt
    from mmtok.pipeline import Pipeline, Result

Progress = Callable[[int, int, int], None]
"""Told (answered, all, failed) whenever rows were written."""
COSTS = ".cost.jsonl"


@dataclass(frozen=True)
class Run:
    """What one variant answered.

    Attributes:
        file: the predictions.
        settings: under which they were made.
        rows: one per question.
        costs: one per batch that ran.
    """

    file: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    costs: list[dict[str, Any]]

    @property
    def failed(self) -> int:
        """Questions whose row is an error."""
        return sum("error" in row for row in self.rows)


def run(
    pipe: Pipeline,
    task: Task,
    batches: Sequence[Batch],
    file: Path,
    settings: dict[str, Any],
    progress: Progress | None = None,
) -> Run:
    """Answer every question that `file` does not answer yet, failed ones once more.

    Args:
        pipe: the model with its reducers.
        task: makes the prompts.
        batches: the plan; the same one as when the file was begun.
        file: predictions (JSON lines); costs go beside it, into `.cost.jsonl`.
        settings: what the answers depend on.
        progress: told after every batch.

    Raises:
        InputError: the file was made under other settings, answers other questions, or another
            process is writing it.
    """
    with locked(cost_file(file)):
        records, costs = (Records(path, {"settings": settings}) for path in (file, cost_file(file)))
        check_predictions(file, records.rows)
        check_costs(costs.path, costs.rows)
        _answer_all(pipe, task, batches, records, costs, progress)
    by_batch = {cost["batch"]: cost for cost in costs.rows}  # a batch cut off by a kill ran twice
    return Run(file, settings, records.rows, list(by_batch.values()))


def _answer_all(
    pipe: Pipeline,
    task: Task,
    batches: Sequence[Batch],
    records: Records,
    costs: Records,
    progress: Progress | None,
) -> None:
    place = {item.key: n for n, item in enumerate(i for batch in batches for i in batch.items)}
    if foreign := [key for key in map(_key, records.rows) if key not in place]:
        raise InputError(
            f"{records.path} answers question {foreign[0][1]!r} of {foreign[0][0]!r}, which is not "
            "asked: remove the file or give another --out"
        )
    if any("error" in row for row in records.rows):
        records.replace([row for row in records.rows if "error" not in row])
    done = set(map(_key, records.rows))
    failed = 0
    for batch in batches:
        if all(item.key in done for item in batch.items):
            continue
        rows, cost = answer(pipe, task, batch)
        costs.append([cost])
        new = [row for row in rows if _key(row) not in done]
        records.append(new)
        failed += sum("error" in row for row in new)
        if progress is not None:
            progress(len(records.rows), len(place), failed)
    ordered = sorted(records.rows, key=lambda row: place[_key(row)])
    if ordered != records.rows:  # failed ones that were tried again stand behind the others
        records.replace(ordered)


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["split"], row["question_id"]


def cost_file(file: Path) -> Path:
    """Where the costs of a file of predictions stand: times differ from run to run."""
    return file.with_suffix(COSTS)


def answer(pipe: Pipeline, task: Task, batch: Batch) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of all items of a batch, and what it cost."""
    try:
        rows, results = _ask(pipe, task, batch, batch.prompts)
    except Exception:  # one by one, to tell which it was
        rows, results = [], []
        for prompt in batch.prompts:
            try:
                found, result = _ask(pipe, task, batch, [prompt])
                rows += found
                results += result
            except Exception as error:
                text = f"{type(error).__name__}: {reason(error)}"
                rows += [item.facts() | {"batch": batch.number, "error": text} for item in prompt]
    return rows, _cost(batch.number, results)


def _ask(
    pipe: Pipeline, task: Task, batch: Batch, prompts: list[list[Item]]
) -> tuple[list[dict[str, Any]], list[Result]]:
    made = [make_prompt(task, prompt[0]) for prompt in prompts]
    result = pipe.generate_batch(made, max_new_tokens=task.max_new_tokens)
    rows = []
    counts = tokens_per_prompt(result.reduction, result.inputs["input_ids"])
    for prompt, asked, text, count in zip(prompts, made, result.texts, counts, strict=True):
        facts = {"batch": batch.number, "answer": text, "visual_tokens": list(count)}
        if asked[2] != prompt[0].text:  # subtitles at the sampled frames, for one
            facts["prompt"] = asked[2]
        rows += [item.facts() | facts for item in prompt]
    return rows, [result]


def make_prompt(task: Task, item: Item) -> Prompt:
    """The pictures, clips and text that ask a question.

    Raises:
        InputError: its file cannot be read.
    """
    if item.kind == "image":
        return [load_image(item.file)], None, task.prompt(item, None)
    clip = load_video(item.file, frames=task.frames)
    return None, [clip], task.prompt(item, clip)


def _cost(number: int, results: Sequence[Result]) -> dict[str, Any]:
    """FLOPs and times of a batch, added up over the passes it took; memory at its largest."""
    stages: dict[str, dict[str, Any]] = defaultdict(dict)
    for result in results:
        for stage in result.ledger.stages:
            row, old = asdict(stage), stages[stage.stage]
            for name in ("flops_analytic", "device_ms", "host_ms"):
                if row[name] is not None:
                    old[name] = old.get(name, 0) + row[name]
            for name in ("peak_mib", "kv_bytes"):
                if row[name] is not None:
                    old[name] = max(old.get(name, 0), row[name])
    prompts = sum(len(result.texts) for result in results)
    return {"batch": number, "prompts": prompts, "stages": dict(stages)}
