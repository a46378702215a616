"""Held-out scenes: POPE's protocol (arXiv 2305.10355, github.com/RUCAIBox/POPE) on the pack that
ships with mmtok, with colour, count, place and printed number as further splits.

Deviation: the pack has its own pictures and questions, so its figures compare methods with each
other and not with published POPE scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmtok.eval import metrics
from mmtok.eval.base import Item, Row, Sums, Task
from mmtok.eval.metrics import POPE_SUMMARIES, Summaries
from mmtok.eval.pack import PACK, pack_items


@dataclass(frozen=True, kw_only=True)
class Scenes(Task):
    """2,733 questions about 320 scenes; needs no files."""

    summaries: ClassVar[Summaries] = POPE_SUMMARIES
    answers: ClassVar[tuple[str, ...]] = ("yesno", "word")

    media: Path | None = PACK
    max_new_tokens: int = 6

    def items(self) -> list[Item]:
        """The questions about pictures."""
        return pack_items(self, "image")

    def tally(self, rows: Sequence[Row], parser: str) -> dict[str, float]:
        """POPE's counts of yes and no, or how many words are right."""
        said = self.said(rows, parser)
        if rows[0]["answer_kind"] == "yesno":
            return metrics.yes_no_tally(rows, said)
        return metrics.right_tally(rows, said, drop_unread=False)

    def figures(self, sums: Sums) -> dict[str, Any]:
        """POPE's scores, or accuracy."""
        return metrics.yes_no_figures(sums) if "yes" in sums else metrics.right_figures(sums)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """Whether the summaries are over less than POPE's three splits."""
        return metrics.pope_notes(rows)
