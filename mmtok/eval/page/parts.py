"""Tables, charts and examples as HTML. Every text that is not ours passes through `escape`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mmtok.accounting.ledger import si
from mmtok.eval.chart import SHAPES, Mark, Series, chart, swatch
from mmtok.eval.examples import Answer, Example
from mmtok.eval.sweep import Point, TaskSweep
from mmtok.eval.table import number, short

AXES = {
    "visual_tokens": "visual tokens",
    "flops": "FLOPs, all stages",
    "ms": "ms, all stages",
}
COLOURS = 8
LONGEST = 600
"""Characters shown of an answer."""

Cell = tuple[str, str | float | None, str]
"""Text, what to sort by, and a smaller text behind it."""


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], looks: Sequence[str] = (), kind: str = ""
) -> str:
    """A table that can be sorted by a click on a title.

    Args:
        head: titles.
        rows: as many cells each.
        looks: a CSS class per row.
        kind: a CSS class of the table.
    """
    titles = "".join(
        f"<th scope='col'><button type='button'>{escape(title)}</button></th>" for title in head
    )
    body = []
    for place, row in enumerate(rows):
        look = f" class='{escape(looks[place])}'" if looks else ""
        body.append(f"<tr{look}>{''.join(_cell(*cell) for cell in row)}</tr>")
    return (
        f"<div class='scroll'><table class='{kind}'><thead><tr>{titles}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(text: str, sort: str | float | None, small: str) -> str:
    key = "" if sort is None else f"{sort:.9g}" if isinstance(sort, float | int) else sort
    behind = f"<small>{escape(small)}</small>" if small else ""
    return f"<td data-sort='{escape(key)}'>{escape(text)}{behind}</td>"


def text_table(lines: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of plain texts, the first line being the head."""
    rows = [[(cell, cell, "") for cell in line] for line in lines[1:]]
    return table(lines[0], rows, kind=kind)


def method(spec: str) -> str:
    """A variant's name for people."""
    return "un-pruned" if spec == "none" else short(spec)


def points_table(one: TaskSweep) -> str:
    """One line per variant: score, differences, costs."""
    head = ["method", f"{one.split} {one.score}", "minus un-pruned", "minus random"]
    head += ["tokens", "FLOPs", "ms", "unreadable", "failed", "on the front by"]
    rows = []
    for p in one.points:
        cells: list[Cell] = [(method(p.reduce), p.reduce, "")]
        cells += [_scored((p.value, p.interval)), _scored(p.minus_none, "+")]
        cells += [_scored(p.minus_random, "+"), _cost(p.visual_tokens, ".1f")]
        cells += [("" if p.flops is None else si(p.flops), p.flops, ""), _cost(p.ms, ".1f")]
        cells += [(str(p.unreadable), p.unreadable, ""), (str(p.failed), p.failed, "")]
        front = ", ".join(AXES[cost].partition(",")[0].split()[-1] for cost in p.front)
        rows.append([*cells, (front, front, "")])
    return table(
        head, rows, [p.series if p.series in ("none", "random") else "" for p in one.points]
    )


def _scored(value: tuple[float | None, tuple[float, float] | None] | None, sign: str = "") -> Cell:
    if value is None or value[0] is None:
        return "", None, ""
    text = number(value[0], None, sign)
    ends = number(value[0], value[1], sign).removeprefix(text).strip(" ()")
    return text, value[0], ends.replace("..", " to ")


def _cost(value: float | None, form: str) -> Cell:
    return ("" if value is None else f"{value:{form}}"), value, ""


def splits_table(one: TaskSweep, by_split: dict[str, list[Point]]) -> str:
    """The first score of every split, a line per variant."""
    rows = [
        [
            (method(p.reduce), p.reduce, ""),
            *(_scored((some[i].value, None)) for some in by_split.values()),
        ]
        for i, p in enumerate(one.points)
    ]
    return table(["method", *by_split], rows)


def looks(points: Sequence[Point]) -> dict[str, tuple[str, str]]:
    """Series -> (CSS class, shape of its marks)."""
    shapes = [shape for shape in SHAPES if shape not in ("circle", "bar")]
    found = {"none": ("none", "circle"), "random": ("random", "bar")}
    methods = dict.fromkeys(p.series for p in points if p.series not in found)
    for i, name in enumerate(methods):
        found[name] = f"s{i % COLOURS}", shapes[i % len(shapes)]
    return {name: look for name, look in found.items() if name in {p.series for p in points}}


def cost_chart(points: Sequence[Point], cost: str, score: str) -> str:
    """The points of a task against one cost."""
    drawn = []
    for name, (look, shape) in looks(points).items():
        marks = [
            Mark(spent, p.value, p.interval, _title(p, spent, cost), cost in p.front)
            for p in points
            if p.series == name and p.value is not None and (spent := getattr(p, cost)) is not None
        ]
        drawn.append(Series(name, look, shape, marks))
    base = next((p.value for p in points if p.series == "none"), None)
    return chart(drawn, cost=AXES[cost], score=score, base=base, dodge=cost != "ms")


def _title(point: Point, spent: float, cost: str) -> str:
    there = si(spent) if cost == "flops" else f"{spent:.1f}"
    return f"{point.reduce}: {number(point.value, point.interval)} at {there} {AXES[cost]}"


def legend(points: Sequence[Point]) -> str:
    """What the marks and lines mean."""
    words = {"none": "un-pruned", "random": "random selection"}
    entries = [
        f"<li>{swatch(*look)}{escape(words.get(name, name))}</li>"
        for name, look in looks(points).items()
    ]
    entries.append("<li><span class='dash'></span>score of the un-pruned model</li>")
    entries.append("<li><span class='step'></span>Pareto front (ringed)</li>")
    return f"<ul class='legend'>{''.join(entries)}</ul>"


def example(one: Example) -> str:
    """A question, and beneath it what each variant saw and answered."""
    label = f" <span class='quiet'>right answer: {escape(one.label)}</span>" if one.label else ""
    return (
        f"<div class='example'><p><b>{escape(one.question)}</b>{label} "
        f"<span class='quiet'>({escape(one.medium)})</span></p>"
        f"<div class='answers'>{''.join(_answer(a) for a in one.answers)}</div></div>"
    )


def _answer(one: Answer) -> str:
    pictures = "".join(
        f"<img src='{escape(uri)}' alt='{escape(title)}' title='{escape(title)}'>"
        for title, uri in one.pictures
    )
    if len(one.pictures) > 1:
        pictures = f"<div class='frames'>{pictures}</div>"
    mark = {True: ("right", "✓"), False: ("wrong", "✗"), None: ("", "")}[one.right]
    kept = one.pictures[0][0].partition(": ")[2] if len(one.pictures) == 1 else ""
    return (
        f"<figure>{pictures}<figcaption><b>{escape(method(one.reduce))}</b>{escape(kept)}"
        f"<pre class='{mark[0]}'>{mark[1]} {escape(_cut(one.text))}</pre></figcaption></figure>"
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
