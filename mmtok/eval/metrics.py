"""Scores from counts, elementwise over arrays, and safe where nothing was counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmtok.eval.base import Row, Sums

Figures = dict[str, NDArray[np.float64]]
Summaries = Mapping[str, tuple[str, tuple[str, ...]]]
POPE_SPLITS = ("random", "popular", "adversarial")
POPE_SUMMARIES: Summaries = {"mean": ("mean", POPE_SPLITS), "pooled": ("pool", POPE_SPLITS)}
"""Papers report the mean over the splits; the pooled scores are another number."""


def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: NDArray[np.float64] = np.where(whole > 0, part / whole, np.nan)
    return ratio


def yes_no_tally(rows: Sequence[Row], said: Sequence[str | None]) -> dict[str, float]:
    """Counts of yes/no answers; one that cannot be read, or failed, is neither yes nor right."""
    truth = [row["label"] == "yes" for row in rows]
    pairs = list(zip(truth, said, strict=True))
    return {
        "asked": len(rows),
        "right": sum(s == ("yes" if t else "no") for t, s in pairs),
        "hits": sum(t and s == "yes" for t, s in pairs),
        "yes": sum(s == "yes" for s in said),
        "positives": sum(truth),
    }


def yes_no_figures(sums: Sums) -> Figures:
    """POPE's scores, "yes" being positive: precision is 0 where nothing was answered yes."""
    precision = np.nan_to_num(share(sums["hits"], sums["yes"]))
    recall = share(sums["hits"], sums["positives"])
    return {
        "accuracy": share(sums["right"], sums["asked"]),
        "precision": precision,
        "recall": recall,
        "f1": np.nan_to_num(share(2 * sums["hits"], sums["yes"] + sums["positives"])),
        "yes_ratio": share(sums["yes"], sums["asked"]),
    }


def pope_notes(rows: Sequence[Row]) -> list[str]:
    """That "mean" and "pooled" lack a split, where they do."""
    there = {str(row["split"]) for row in rows} & set(POPE_SPLITS)
    if not 1 < len(there) < len(POPE_SPLITS):
        return []
    names = ", ".join(split for split in POPE_SPLITS if split in there)
    return [f"mean and pooled are over {len(there)} of {len(POPE_SPLITS)} splits: {names}"]


def right_tally(rows: Sequence[Row], said: Sequence[Any], *, drop_unread: bool) -> dict[str, float]:
    """Counts of answers that equal their label.

    Args:
        rows: the questions.
        said: the answers as read, None where none was.
        drop_unread: leave unreadable answers out of the denominator, as Video-MME's script does.
            Failed ones stay in it.
    """
    asked = len(rows)
    if drop_unread:
        asked -= sum(s is None and "error" not in r for r, s in zip(rows, said, strict=True))
    right = sum(s == r["label"] for r, s in zip(rows, said, strict=True))
    return {"asked": asked, "right": right}


def right_figures(sums: Sums) -> Figures:
    """Accuracy."""
    return {"accuracy": share(sums["right"], sums["asked"])}
