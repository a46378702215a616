"""A sweep as one HTML file that loads nothing: charts, tables, examples, failures, run cards."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from mmtok.errors import InputError
from mmtok.eval.examples import Example
from mmtok.eval.page.parts import (
    AXES,
    cost_chart,
    example,
    legend,
    method,
    points_table,
    splits_table,
    text_table,
)
from mmtok.eval.scoring import DETAIL
from mmtok.eval.sweep import TaskSweep, split_points
from mmtok.eval.table import card_lines, shared_facts
from mmtok.io.files import reason

MOST_FAILURES = 100
HOW_TO_READ = """
<p class='quiet'>Whiskers and the ranges in small print are 95% bootstrap intervals over whole
pictures or videos; differences are paired. The front is drawn through the scores themselves:
where intervals overlap, its order may be chance. In the charts of tokens and FLOPs the methods
stand a few pixels apart. Tokens, FLOPs (closed form) and ms are means per question. Tokens are
those that enter the language model: what a method drops further inside shows in FLOPs and ms.
Times are those of batches, one method after the other, on whatever else the machine was
doing.</p>"""


def page(found: Sequence[TaskSweep], shown: Sequence[Sequence[Example]] = ()) -> str:
    """The HTML document.

    Args:
        found: one per task.
        shown: examples of each task.
    """
    style, script = (files(__package__).joinpath(n).read_text() for n in ("style.css", "sort.js"))
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += f"script-src 'sha256-{digest}'"
    settings = found[0].report.runs[0].settings
    model = str(settings["model"])
    shown = shown or [[] for _ in found]
    body = [
        f"<h1>Fewer visual tokens for {escape(model)}</h1>",
        f"<p class='quiet'>{escape(_about(found))}</p>",
        *(_task(one, some) for one, some in zip(found, shown, strict=True)),
        "<h2>Failures</h2>",
        _failures(found),
        "<h2>Run cards</h2>",
        *(_card(one) for one in found),
        "<h2>How to read this</h2>",
        HOW_TO_READ,
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>mmtok: {escape(model)}</title><style>\n{style}</style></head><body>\n"
        + "\n".join(body)
        + f"\n<script>{script}</script></body></html>\n"
    )


def check_page_path(path: Path) -> Path:
    """The path, once it is known that a page can be written there.

    Raises:
        InputError: it does not end in .html, or is a folder.
    """
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise InputError(f"{path}: the report is one HTML file, name it such as report.html")
    return path


def write_page(text: str, path: Path) -> Path:
    """Write the page whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({reason(error)})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _about(found: Sequence[TaskSweep]) -> str:
    tasks = ", ".join(
        f"{one.report.task.name} ({one.report.runs[0].settings['questions']} questions)"
        for one in found
    )
    names = dict.fromkeys(p.series for one in found for p in one.points)
    methods = ", ".join(name for name in names if name not in ("none", "random"))
    beside = "the un-pruned model and random selection"
    return (
        f"{tasks}. {methods + ' beside ' if methods else ''}{beside}. "
        f"Answers read by the {found[0].report.parser} parser."
    )


def _task(one: TaskSweep, shown: Sequence[Example]) -> str:
    name = f"{one.split} {one.score}"
    charts = "".join(f"<figure>{cost_chart(one.points, cost, name)}</figure>" for cost in AXES)
    parts = [
        f"<h2>{escape(one.report.task.name)}</h2>",
        *(f"<p>{escape(note)}</p>" for note in one.report.task.notes(one.report.runs[0].rows)),
        f"<div class='charts'>{charts}</div>",
        legend(one.points),
        points_table(one),
        _splits(one),
    ]
    if shown:
        kind = "Questions that not all of these get right, then any others; not a fair sample."
        parts += [
            "<h3>Examples</h3>",
            f"<p class='quiet'>{kind} Of each method, the cheapest budget. Dimmed cells were "
            "dropped before the language model.</p>",
            *(example(some) for some in shown),
        ]
    return "\n".join(parts)


def _splits(one: TaskSweep) -> str:
    splits = dict.fromkeys(row["split"] for row in one.report.rows)
    names = [name for name in splits if DETAIL not in name]
    if len(names) < 2:
        return ""
    by_split = {name: split_points(one, name) for name in names}
    charts = "".join(
        f"<figure>{cost_chart(points, 'visual_tokens', name)}</figure>"
        for name, points in by_split.items()
        if name != one.split
    )
    return (
        "<details><summary>Every split</summary>"
        f"{splits_table(one, by_split)}<div class='charts'>{charts}</div></details>"
    )


def _failures(found: Sequence[TaskSweep]) -> str:
    lines = [
        [one.report.task.name, method(run.settings["reduce"])]
        + [str(row[name]) for name in ("split", "question_id", "medium", "error")]
        for one in found
        for run in one.report.runs
        for row in run.rows
        if "error" in row
    ]
    if not lines:
        return "<p>No question failed.</p>"
    some = lines[:MOST_FAILURES]
    more = f" The first {len(some)} are shown." if len(lines) > len(some) else ""
    head = ["task", "method", "split", "question", "medium", "error"]
    return f"<p>{len(lines)} answers failed; they count as wrong.{more}</p>" + text_table(
        [head, *some], "facts"
    )


def _card(one: TaskSweep) -> str:
    name = escape(one.report.task.name)
    facts = [line.partition(": ")[::2] for line in shared_facts(one.report)]
    variants = list(zip(*card_lines(one.report), strict=True))
    return (
        f"<details open><summary>{name}, all variants</summary>"
        + text_table([["fact", "value"], *facts], "facts")
        + f"</details><details><summary>{name}, each variant, per question</summary>"
        + f"{text_table(variants)}</details>"
    )
