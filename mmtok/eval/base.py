"""What a benchmark is: where its questions come from, how an answer is read, what is counted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmtok.errors import InputError
from mmtok.eval.files import is_file
from mmtok.eval.parsing import read

if TYPE_CHECKING:
    from mmtok.io.video import Clip

Row = Mapping[str, Any]
Sums = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question.

    Attributes:
        split: the part of the benchmark it belongs to.
        question_id: unique within its split.
        text: the prompt; where subtitles are used, without them.
        medium: name of the picture or video, which is also the cluster of the bootstrap.
        file: where that picture or video lies.
        kind: "image" or "video".
        answer: how its answer is read: "yesno", "choice", "word" or "caption".
        label: the right answer.
        options: texts of the options of a choice, without letters.
        meta: what else scores are grouped by, such as a domain.
    """

    split: str
    question_id: str
    text: str
    medium: str
    file: Path
    kind: str
    answer: str
    label: Any
    options: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the question in a file of predictions."""
        return self.split, self.question_id

    def facts(self) -> dict[str, Any]:
        """What a row of predictions says about the question, so that it can be scored alone."""
        row: dict[str, Any] = {"split": self.split, "question_id": self.question_id}
        row |= {
            "medium": self.medium,
            "text": self.text,
            "answer_kind": self.answer,
            "label": self.label,
        }
        if self.options:
            row["options"] = list(self.options)
        if self.meta:
            row["meta"] = dict(self.meta)
        return row


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark.

    Scores come in two steps, so that one bootstrap serves every benchmark: `tally` counts within
    the answers about one medium, `figures` turns added-up counts into scores.

    Attributes:
        questions: file of questions.
        media: folder of the pictures or videos.
        suffix: appended to each question, such as "\\nAnswer with one word."
        subtitles: folder of .srt files, for tasks with `reads_subtitles`; None for none.
        max_new_tokens: longest answer.
        frames: frames sampled from each video.
        summaries: class attribute, further rows of the table: name -> (rule, groups), where the
            rule is "mean" of their scores, "pool" of their answers, or "sum" of the task's `total`.
        total: class attribute, the score that may be summed.
        lower_is_better: class attribute, of the first score.
        scoring: class attribute, fields that scores depend on, kept with the predictions.
        paths: class attribute, fields that may be given as strings.
        answers: class attribute, kinds of answers it can score; empty for all.
        reads_subtitles: class attribute, whether `subtitles` may be given.
    """

    summaries: ClassVar[Mapping[str, tuple[str, tuple[str, ...]]]] = {}
    total: ClassVar[str] = "score"
    lower_is_better: ClassVar[bool] = False
    scoring: ClassVar[tuple[str, ...]] = ()
    paths: ClassVar[tuple[str, ...]] = ("questions", "media", "subtitles")
    reads_subtitles: ClassVar[bool] = False
    answers: ClassVar[tuple[str, ...]] = ()

    questions: Path | None = None
    media: Path | None = None
    suffix: str = ""
    subtitles: Path | None = None
    max_new_tokens: int = 16
    frames: int = 8

    def __post_init__(self) -> None:
        for name in self.paths:
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))
        for name in ("max_new_tokens", "frames"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise InputError(f"{self.name}: {name} must be an int of at least 1, got {value!r}")
        if self.subtitles is not None:
            self._check_subtitles(self.subtitles)

    def _check_subtitles(self, folder: Path) -> None:
        if not self.reads_subtitles:
            raise InputError(f"{self.name} reads no subtitles: leave them out")
        if not os.path.isdir(folder):  # unlike Path's, False for names too long
            raise InputError(f"subtitles: {str(folder)[:200]} is no folder; expected one of .srt")

    @property
    def name(self) -> str:
        """The registered name: the stem of the file the class stands in, "-" for "_"."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    def items(self) -> list[Item]:
        """Every question, in the benchmark's order.

        Raises:
            InputError: the files are missing, malformed, or hold a question twice.
        """
        raise NotImplementedError

    def prompt(self, item: Item, clip: Clip | None) -> str:
        """What the model is asked, once the frames of a clip are known."""
        return item.text

    def subtitle_file(self, item: Item) -> Path | None:
        """The subtitles of an item's video, None where there are none."""
        return None

    def read(self, row: Row, parser: str) -> str | None:
        """The answer as `parser` reads it, None where it reads none."""
        kind, options = str(row["answer_kind"]), row.get("options", ())
        return read(str(row["answer"]), kind, parser, options, str(row.get("text", "")))

    def said(self, rows: Sequence[Row], parser: str) -> list[str | None]:
        """Each answer as `parser` reads it; None also where the question failed."""
        return [None if "error" in row else self.read(row, parser) for row in rows]

    def groups(self, row: Row) -> list[str]:
        """The rows of the table an answer counts in, summaries apart."""
        return [self.named(row)]

    def named(self, row: Row) -> str:
        """The split as a row of the table, told apart from a summary of the same name."""
        split = str(row["split"])
        return f"{split} (split)" if split in self.summaries else split

    def parts(self, group: str) -> tuple[str, ...]:
        """The groups that a row of the table is made of."""
        return self.summaries[group][1] if group in self.summaries else (group,)

    def tally(self, rows: Sequence[Row], parser: str) -> dict[str, float]:
        """Counts over the answers about one medium in one group."""
        raise NotImplementedError

    def figures(self, sums: Sums) -> dict[str, NDArray[np.float64]]:
        """Scores from added-up counts, elementwise; NaN where a score does not exist."""
        raise NotImplementedError

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """What a reader of the scores must know: pairs that are incomplete and the like."""
        return []


def check_items(items: Sequence[Item]) -> list[Item]:
    """The same items, once every key is known to be unique and every file to be there.

    Raises:
        InputError: a doubled question, or missing files, all in one message.
    """
    if not items:
        raise InputError("no questions found; expected at least one")
    seen: set[tuple[str, str]] = set()
    for item in items:
        if item.key in seen:
            raise InputError(f"question {item.question_id} of split {item.split!r} is there twice")
        seen.add(item.key)
        try:
            json.dumps(item.facts(), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"question {item.question_id!a} of split {item.split!a}: its text is no UTF-8 "
                f"({error.reason})"
            ) from None
    missing = sorted({str(item.file) for item in items if not is_file(item.file)})
    if missing:
        some = ", ".join(name[:200] for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
        total = len({item.file for item in items})
        raise InputError(
            f"{len(missing)} of {total} media files are missing ({some}): give their folder"
        )
    return list(items)
