"""MME: two yes/no questions a picture, in 14 subtasks (arXiv 2306.13394,
github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation).

Reads the authors' tab-separated files, one per subtask. Per subtask acc is the share of questions
and acc+ the share of pictures answered wholly right; the score is 100 (acc + acc+), summed over
the subtasks. Deviation: pairs are found by picture, not by consecutive lines, and a picture
without exactly two questions is reported and left out of acc+ instead of ending the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmtok.errors import InputError
from mmtok.eval import metrics
from mmtok.eval.base import Item, Row, Sums, Task
from mmtok.eval.files import is_file, read_text
from mmtok.eval.metrics import Summaries
from mmtok.eval.parsing import official_mme

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity"),
    *("scene", "landmark", "artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)


@dataclass(frozen=True, kw_only=True)
class MME(Task):
    """Pairs of yes/no questions about pictures.

    Attributes:
        questions: folder of `<subtask>.txt`: picture, question and label in columns, further
            columns ignored; or one such file.
        media: folder with a folder of pictures per subtask; default: where the questions lie.
    """

    summaries: ClassVar[Summaries] = {
        "perception": ("sum", PERCEPTION),
        "cognition": ("sum", COGNITION),
    }
    answers: ClassVar[tuple[str, ...]] = ("yesno",)

    def items(self) -> list[Item]:
        """The questions of every subtask."""
        if self.questions is None:
            raise InputError("mme needs questions: a folder of <subtask>.txt, or one such file")
        files = sorted(self.questions.glob("*.txt")) if self.questions.is_dir() else []
        return [item for file in files or [self.questions] for item in self._read(file)]

    def _read(self, file: Path) -> list[Item]:
        asked: Counter[str] = Counter()
        items = []
        lines = read_text(file, "tab-separated picture, question, label").split("\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            cells = [cell.strip() for cell in line.rstrip("\r").split("\t")]
            if len(cells) < 3 or cells[2].lower() not in ("yes", "no"):
                raise InputError(
                    f"{file}, line {number}: expected picture, question and yes or no between "
                    f"tabs, got {line[:60]!r}"
                )
            image, question, label = cells[0], cells[1], cells[2].lower()
            asked[image] += 1
            items.append(
                Item(
                    split=file.stem,
                    question_id=f"{image}#{asked[image]}",
                    text=question + self.suffix,
                    medium=f"{file.stem}/{image}",
                    file=self._picture(file, image),
                    kind="image",
                    answer="yesno",
                    label=label,
                )
            )
        return items

    def _picture(self, file: Path, image: str) -> Path:
        """Where a subtask's picture is: published copies lay them out in three ways."""
        folder = self.media or file.parent
        ways = [folder / file.stem / image, folder / file.stem / "images" / image, folder / image]
        return next((way for way in ways if is_file(way)), ways[0])

    def read(self, row: Row, parser: str) -> str | None:
        """As every yes or no, but for the official rule, which is MME's own."""
        return (
            official_mme(str(row["answer"])) if parser == "official" else super().read(row, parser)
        )

    def tally(self, rows: Sequence[Row], parser: str) -> dict[str, float]:
        """Questions right, and whether a picture with two questions has both right."""
        right = [s == row["label"] for s, row in zip(self.said(rows, parser), rows, strict=True)]
        pair = len(rows) == 2
        return {
            "asked": len(rows),
            "right": sum(right),
            "pairs": int(pair),
            "both": int(pair and all(right)),
        }

    def figures(self, sums: Sums) -> dict[str, Any]:
        """acc, acc+ and 100 (acc + acc+)."""
        accuracy = metrics.share(sums["right"], sums["asked"])
        plus = metrics.share(sums["both"], sums["pairs"])
        return {"score": 100 * (accuracy + plus), "accuracy": accuracy, "accuracy_plus": plus}

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """Pictures without exactly two questions, and sums over less than all subtasks."""
        notes = []
        each = Counter((str(row["split"]), str(row["medium"])) for row in rows)
        odd = sorted(medium for (_, medium), n in each.items() if n != 2)
        if odd:
            some = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
            notes.append(f"{len(odd)} pictures without exactly two questions: {some}")
        there = {str(row["split"]) for row in rows}
        for name, (_, parts) in self.summaries.items():
            if 0 < len(there & set(parts)) < len(parts):
                found = len(there & set(parts))
                notes.append(f"{name} is a sum over {found} of {len(parts)} subtasks")
        return notes
