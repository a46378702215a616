"""Score against cost as an SVG picture that needs nothing around it but a few CSS classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mmtok.accounting.ledger import si

WIDTH, HEIGHT = 380, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 28, 40
LOG_FROM = 6.0
"""Costs that span more than this factor are drawn on a logarithmic axis."""
DODGE = 5.0
"""Pixels between series, so that intervals at one budget stand side by side."""
SHAPES = {
    "circle": "M-4,0a4,4 0 1 0 8,0a4,4 0 1 0 -8,0Z",
    "square": "M-3.6,-3.6H3.6V3.6H-3.6Z",
    "triangle": "M0,-4.6L4.4,3.4H-4.4Z",
    "diamond": "M0,-5L5,0L0,5L-5,0Z",
    "down": "M0,4.6L4.4,-3.4H-4.4Z",
    "bar": "M-5,-1.8H5V1.8H-5Z",
}


@dataclass(frozen=True)
class Mark:
    """One variant in a chart.

    Attributes:
        cost: where on the x axis.
        score: where on the y axis.
        interval: 95% interval of the score.
        title: said when the pointer rests on it.
        front: whether it is on the Pareto front.
    """

    cost: float
    score: float
    interval: tuple[float, float] | None
    title: str
    front: bool


@dataclass(frozen=True)
class Series:
    """Variants that differ in their budget alone.

    Attributes:
        name: for the legend.
        look: CSS class that gives the colour.
        shape: of the marks, one of SHAPES.
        marks: in any order.
    """

    name: str
    look: str
    shape: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Scale:
    """Values to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, log: bool = False) -> Scale:
        """A scale that holds all values with some room on both sides."""
        low, high = min(values), max(values)
        if log and low > 0 and high / low > LOG_FROM:
            room = (high / low) ** 0.07
            return cls(low / room, high * room, start, end, log=True)
        room = 0.07 * (high - low) or 0.07 * abs(high) or 0.1
        return cls(low - room, high + room, start, end)

    def place(self, value: float) -> float:
        """Where a value lies, in pixels."""
        low, high, value = (
            (math.log(x) for x in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the scale, three to eight of them."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first < 4 else (1,)
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        else:
            rough = (self.high - self.low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough)
            first = math.ceil(self.low / step)
            found = [round(step * (first + i), 12) for i in range(7)]
        return [x for x in found if self.low <= x <= self.high]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, score) points that no other beats: cheaper or equal, and better or
    equal, and not the same. By rising cost.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    kept: list[int] = []
    for i in order:
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept


def chart(
    series: Sequence[Series],
    *,
    cost: str,
    score: str,
    base: float | None = None,
    dodge: bool = False,
) -> str:
    """An SVG element, or a sentence where there is nothing to draw.

    Args:
        series: what is drawn; the first one lies undermost.
        cost: title of the x axis.
        score: title of the y axis.
        base: score of the un-pruned model, a dashed line.
        dodge: move series a few pixels apart.
    """
    marks = [mark for one in series for mark in one.marks]
    if not marks:
        return f"<p class='quiet'>No figures for {escape(cost)}.</p>"
    ends = [y for m in marks for y in (m.interval or (m.score, m.score))]
    x = Scale.over([m.cost for m in marks], LEFT, WIDTH - RIGHT, log=True)
    y = Scale.over(ends, HEIGHT - BOTTOM, TOP)
    shifts = [(i - (len(series) - 1) / 2) * DODGE * dodge for i in range(len(series))]
    limit = 14 / max(1.0, max(map(abs, shifts)))
    shifts = [shift * min(1.0, limit) for shift in shifts]
    drawn = [_axes(x, y, cost, score)]
    if base is not None:
        drawn.append(_line("base", LEFT, y.place(base), WIDTH - RIGHT, y.place(base)))
    drawn.append(_front(series, x, y, shifts))
    drawn += [_series(one, x, y, shift) for one, shift in zip(series, shifts, strict=True)]
    label = escape(f"{score} against {cost}")
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{label}'>"
        + "".join(drawn)
        + "</svg>"
    )


def swatch(look: str, shape: str) -> str:
    """A mark for the legend."""
    return (
        f"<svg class='swatch' viewBox='-8 -8 16 16' aria-hidden='true'><g class='{look}'>"
        f"<path class='mark' d='{SHAPES[shape]}'/></g></svg>"
    )


def _axes(x: Scale, y: Scale, cost: str, score: str) -> str:
    floor = HEIGHT - BOTTOM
    drawn = []
    for tick in y.ticks():
        at = y.place(tick)
        drawn.append(_line("grid", LEFT, at, WIDTH - RIGHT, at))
        drawn.append(f"<text x='{LEFT - 6}' y='{at + 4:.1f}' text-anchor='end'>{tick:g}</text>")
    for tick in x.ticks():
        at = x.place(tick)
        drawn.append(_line("grid", at, floor, at, floor + 4))
        drawn.append(
            f"<text x='{at:.1f}' y='{floor + 17}' text-anchor='middle'>{escape(si(tick))}</text>"
        )
    drawn.append(_line("axis", LEFT, floor, WIDTH - RIGHT, floor))
    log = ", log" if x.log else ""
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(
        f"<text class='title' x='{middle}' y='{HEIGHT - 5}' text-anchor='middle'>"
        f"{escape(cost + log)}</text>"
    )
    drawn.append(f"<text class='title' x='{LEFT - 32}' y='15'>{escape(score)}</text>")
    return "".join(drawn)


def _front(series: Sequence[Series], x: Scale, y: Scale, shifts: Sequence[float]) -> str:
    """The best score that can be had up to each cost, in steps."""
    at = [
        (x.place(m.cost) + shift, y.place(m.score))
        for one, shift in zip(series, shifts, strict=True)
        for m in one.marks
        if m.front
    ]
    if len(at) < 2:
        return ""
    at.sort()
    steps = f"M{at[0][0]:.1f},{at[0][1]:.1f}" + "".join(f"H{a:.1f}V{b:.1f}" for a, b in at[1:])
    return f"<path class='front' d='{steps}'/>"


def _series(one: Series, x: Scale, y: Scale, shift: float) -> str:
    marks = sorted(one.marks, key=lambda m: m.cost)
    at = [(x.place(m.cost) + shift, y.place(m.score), m) for m in marks]
    drawn = []
    if len(at) > 1:
        drawn.append(
            "<path class='curve' d='M" + "L".join(f"{a:.1f},{b:.1f}" for a, b, _ in at) + "'/>"
        )
    for a, b, mark in at:
        parts = [f"<title>{escape(mark.title)}</title>"]
        if mark.interval:
            low, high = (y.place(end) for end in mark.interval)
            parts.append(_line("whisker", a, low, a, high))
        where = f"transform='translate({a:.1f},{b:.1f})'"
        if mark.front:
            parts.append(f"<circle class='ring' r='8' {where}/>")
        parts.append(f"<path class='mark' d='{SHAPES[one.shape]}' {where}/>")
        drawn.append(f"<g>{''.join(parts)}</g>")
    return f"<g class='{one.look}'>{''.join(drawn)}</g>"


def _line(look: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line class='{look}' x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'/>"
