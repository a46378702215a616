"""Subtitles (.srt) on screen at given times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtok.errors import InputError
from mmtok.io.files import check_file

_TIME = r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})"
_SPAN = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
MAX_BYTES = 2**24


@dataclass(frozen=True)
class Cue:
    """One subtitle: seconds from its start to its end, and its text on one line."""

    start_s: float
    end_s: float
    text: str


def read_srt(path: Path) -> list[Cue]:
    """The cues of a file in the order of time; markup is left out, cues without text too.

    Raises:
        InputError: no such file, above 16 MiB, or without a single cue.
    """
    file = check_file(path, "subtitles (.srt)")
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"{file}: larger than {MAX_BYTES} bytes, expected subtitles (.srt)")
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    cues = []
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        spans = [i for i, line in enumerate(lines) if _SPAN.match(line)]
        if not spans:
            continue
        said = " ".join(" ".join(_MARKUP.sub("", x) for x in lines[spans[0] + 1 :]).split())
        found = _SPAN.match(lines[spans[0]])
        if found and said:
            parts = found.groups()
            cues.append(Cue(_seconds(parts[:4]), _seconds(parts[4:]), said))
    if not cues:
        raise InputError(
            f"{file}: no subtitle found, expected .srt with lines such as 00:00:01,000 "
            "--> 00:00:02,500"
        )
    return sorted(cues, key=lambda cue: cue.start_s)


def on_screen(cues: Sequence[Cue], times_s: Sequence[float]) -> list[str]:
    """Texts shown at any of the times, each cue once, in the order of time."""
    return [c.text for c in cues if any(c.start_s <= t < c.end_s for t in times_s)]


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    whole = 3600 * int(hours) + 60 * int(minutes) + int(seconds)
    return whole + int(fraction.ljust(3, "0")) / 1000
