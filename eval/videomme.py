"""Video-MME: multiple choice about videos (arXiv 2405.21075, github.com/MME-Benchmarks/Video-MME).

Reads the authors' result structure (a list of videos with their questions), the published table
exported as JSON lines, and the eight options of Video-MME-v2. Prompt as published. Deviations:
letters come from the options; answers that cannot be read count as wrong, except under
`parser="official"`, which leaves them out as the authors' script does; partial runs are scored and
marked; v2's grouped non-linear score is not computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmtok.errors import InputError
from mmtok.eval import metrics
from mmtok.eval.base import Item, Row, Sums, Task
from mmtok.eval.files import field, is_file, read_json, read_rows, read_text
from mmtok.eval.metrics import Summaries
from mmtok.eval.parsing import LETTERS
from mmtok.eval.subtitles import on_screen, read_srt

if TYPE_CHECKING:
    from mmtok.io.video import Clip

DURATIONS = ("short", "medium", "long")
DETAILS = ("domain", "sub_category", "task_type")
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
_LETTERED = re.compile(r"^\s*\(?([A-Z])[.):]\s*")


@dataclass(frozen=True, kw_only=True)
class VideoMME(Task):
    """Questions with options about short, medium and long videos.

    Attributes:
        questions: the file.
        media: folder of the videos, each called by its `videoID` or else `video_id`.
        subtitles: folder of `<video>.srt`; None runs without. Only those on screen at the sampled
            frames are shown; a video without a file gets the prompt without them.
    """

    summaries: ClassVar[Summaries] = {"overall": ("pool", DURATIONS)}
    reads_subtitles: ClassVar[bool] = True
    answers: ClassVar[tuple[str, ...]] = ("choice",)

    def items(self) -> list[Item]:
        """Every question of every video."""
        if self.questions is None:
            raise InputError("videomme needs questions: the authors' JSON, or its rows as lines")
        folder = self.media or self.questions.parent
        items = [self._item(folder, where, row) for where, row in _questions(self.questions)]
        if self.subtitles is not None and items and not any(map(self.subtitle_file, items)):
            raise InputError(
                f"subtitles: no video of {self.questions} has its <video>.srt in {self.subtitles}"
            )
        return items

    def _item(self, folder: Path, where: str, row: Mapping[str, Any]) -> Item:
        texts, label = _options(row, where)
        video = str(row.get("videoID") or field(row, "video_id", where))
        duration = str(field(row, "duration", where)).strip().lower()
        return Item(
            split=duration,
            question_id=str(field(row, "question_id", where)),
            text=prompt(str(field(row, "question", where)), texts) + self.suffix,
            medium=video,
            file=_video(folder, video),
            kind="video",
            answer="choice",
            label=label,
            options=tuple(texts),
            meta={name: str(row[name]) for name in DETAILS if row.get(name)},
        )

    def prompt(self, item: Item, clip: Clip | None) -> str:
        """The question behind the subtitles at the sampled frames, if there are any."""
        file = self.subtitle_file(item)
        if file is None or clip is None:
            return item.text
        shown = on_screen(read_srt(file), clip.timestamps_s)
        if not shown:
            return item.text
        lines = "\n".join(shown)
        return f"This video's subtitles are listed below:\n{lines}\n{item.text}"

    def subtitle_file(self, item: Item) -> Path | None:
        """`<video>.srt` in the folder of subtitles."""
        if self.subtitles is None:
            return None
        file = self.subtitles / f"{item.medium}.srt"
        return file if is_file(file) else None

    def groups(self, row: Row) -> list[str]:
        """The duration; and domain, sub-category and task type under their own names."""
        meta = row.get("meta", {})
        return [self.named(row), *(f"{name}: {meta[name]}" for name in DETAILS if name in meta)]

    def tally(self, rows: Sequence[Row], parser: str) -> dict[str, float]:
        """How many are right; the official script leaves unread answers out."""
        said = self.said(rows, parser)
        return metrics.right_tally(rows, said, drop_unread=parser == "official")

    def figures(self, sums: Sums) -> dict[str, Any]:
        """Accuracy."""
        return metrics.right_figures(sums)


def prompt(question: str, options: Sequence[str]) -> str:
    """The published prompt, for as many options as there are."""
    letters = LETTERS[: len(options)]
    listed = ", ".join(letters[:-1]) + f", or {letters[-1]}"
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, options, strict=True))
    return (
        "Select the best answer to the following multiple-choice question based on the video. "
        f"Respond with only the letter ({listed}) of the correct option.\n"
        f"{question}\n{lines}\nThe best answer is:"
    )


def _questions(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, the question with the facts of its video)."""
    nested = read_text(file, "Video-MME's questions").lstrip().startswith("[")
    rows = read_json(file) if nested else read_rows(file)
    for number, row in enumerate(rows, 1):
        where = f"{file}, entry {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object, got {str(row)[:60]!r}")
        if "questions" not in row:
            yield where, row
            continue
        video = {key: value for key, value in row.items() if key != "questions"}
        if not isinstance(row["questions"], list):
            raise InputError(f"{where}: expected a list of questions")
        for place, question in enumerate(row["questions"], 1):
            if not isinstance(question, dict):
                raise InputError(
                    f"{where}, question {place}: expected an object, got {str(question)[:60]!r}"
                )
            yield f"{where}, question {place}", video | question


def _options(row: Mapping[str, Any], where: str) -> tuple[list[str], str]:
    """The texts of the options without their letters, and the letter of the right one."""
    options = field(row, "options", where)
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise InputError(f"{where}: expected a list of 2 to 26 options, got {options!r}")
    letters = LETTERS[: len(options)]
    found = [_LETTERED.match(str(option)) for option in options]
    texts = [str(option).strip() for option in options]
    if all(found):
        if [hit[1] for hit in found if hit] != list(letters):
            raise InputError(f"{where}: options are not lettered {letters[0]} to {letters[-1]}")
        texts = [_LETTERED.sub("", text).strip() for text in texts]
    label = str(field(row, "answer", where)).strip().upper()[:1]
    if not label or label not in letters:
        raise InputError(f"{where}: answer {row['answer']!r} is none of the options {letters}")
    return texts, label


def _video(folder: Path, name: str) -> Path:
    ways = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return next((way for way in [folder / name, *ways] if is_file(way)), ways[0])
