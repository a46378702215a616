"""POPE: is there a <thing> in the image? (arXiv 2305.10355, github.com/RUCAIBox/POPE)

Reads the authors' JSON lines, one file per split. Deviations: answers are matched to questions by
(split, question_id), not by the order of lines; scores exist where a model never says yes; the
default prompt is the bare question of the authors' code (LLaVA and lmms-eval append
"\\nAnswer the question using a single word or phrase.": pass it as `suffix`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmtok.errors import InputError
from mmtok.eval import metrics
from mmtok.eval.base import Item, Row, Sums, Task
from mmtok.eval.files import field, read_rows
from mmtok.eval.metrics import POPE_SPLITS, POPE_SUMMARIES, Summaries


@dataclass(frozen=True, kw_only=True)
class Pope(Task):
    """Yes/no questions about pictures, the authors' or one's own.

    Attributes:
        questions: one file of questions, or a folder with the authors' three. Each question has
            `image`, `text` and `label`; without `question_id` its number in the file counts.
        media: folder of the pictures; default: where the questions lie.
    """

    summaries: ClassVar[Summaries] = POPE_SUMMARIES
    answers: ClassVar[tuple[str, ...]] = ("yesno",)

    max_new_tokens: int = 16

    def items(self) -> list[Item]:
        """The questions of every split."""
        return [item for split, file in self._files().items() for item in self._read(split, file)]

    def _files(self) -> dict[str, Path]:
        """Split -> file."""
        if self.questions is None:
            raise InputError(
                "pope needs questions: a file of POPE's form, or a folder with the authors' three "
                "(coco_pope_random.json ...)"
            )
        if not self.questions.is_dir():
            return {_split(self.questions): self.questions}
        found: dict[str, Path] = {}
        for file in sorted(self.questions.glob("*.json*")):
            split = _split(file)
            if split in POPE_SPLITS and split in found:
                raise InputError(f"{found[split]} and {file} are both {split!r}: give one set")
            if split in POPE_SPLITS:
                found[split] = file
        if not found:
            raise InputError(
                f"{self.questions}: no file that ends in _random, _popular or _adversarial"
            )
        return {split: found[split] for split in POPE_SPLITS if split in found}

    def _read(self, split: str, file: Path) -> list[Item]:
        folder = self.media or file.parent
        items = []
        for number, row in enumerate(read_rows(file), 1):
            where = f"{file}, question {number}"
            label = str(field(row, "label", where)).strip().lower()
            if label not in ("yes", "no"):
                raise InputError(f"{where}: label {label!r}, expected yes or no")
            image = str(field(row, "image", where))
            items.append(
                Item(
                    split=split,
                    question_id=str(number if (own := row.get("question_id")) is None else own),
                    text=str(field(row, "text", where)) + self.suffix,
                    medium=image,
                    file=folder / image,
                    kind="image",
                    answer="yesno",
                    label=label,
                )
            )
        return items

    def tally(self, rows: Sequence[Row], parser: str) -> dict[str, float]:
        """Counts of yes and no."""
        return metrics.yes_no_tally(rows, self.said(rows, parser))

    def figures(self, sums: Sums) -> dict[str, Any]:
        """Accuracy, precision, recall, F1 and the share of yes among the answers."""
        return metrics.yes_no_figures(sums)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """Whether the summaries are over less than the three splits."""
        return metrics.pope_notes(rows)


def _split(file: Path) -> str:
    last = file.stem.rpartition("_")[2]
    return last if last in POPE_SPLITS else file.stem
