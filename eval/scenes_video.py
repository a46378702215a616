"""Held-out clips: Video-MME's protocol (arXiv 2405.21075, github.com/MME-Benchmarks/Video-MME) on
the pack that ships with mmtok: its prompt, four options, all frames; and open questions beside.

Deviation: the clips are of one length, so there are no duration classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmtok.eval import metrics
from mmtok.eval.base import Item, Row, Sums, Task
from mmtok.eval.metrics import Summaries
from mmtok.eval.pack import PACK, pack_items


@dataclass(frozen=True, kw_only=True)
class ScenesVideo(Task):
    """240 questions about 120 clips of 8 frames; needs no files."""

    summaries: ClassVar[Summaries] = {"overall": ("pool", ("choice", "open"))}
    answers: ClassVar[tuple[str, ...]] = ("choice", "word", "yesno")

    media: Path | None = PACK
    max_new_tokens: int = 6

    def items(self) -> list[Item]:
        """The questions about clips."""
        return pack_items(self, "video")

    def tally(self, rows: Sequence[Row], parser: str) -> dict[str, float]:
        """How many are right; Video-MME's script leaves unread choices out."""
        drop = parser == "official" and rows[0]["answer_kind"] == "choice"
        return metrics.right_tally(rows, self.said(rows, parser), drop_unread=drop)

    def figures(self, sums: Sums) -> dict[str, Any]:
        """Accuracy."""
        return metrics.right_figures(sums)
