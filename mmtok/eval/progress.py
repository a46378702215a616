"""Progress of a run on one line at a time: how far, how fast, how long still."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 5.0


def reporter(label: str, say: Callable[[str], None]) -> Callable[[int, int, int], None]:
    """A function of (answered, all, failed) that tells `say` now and then, and at the end.

    The rate counts from the first call, so answers of an earlier run do not flatter it.
    """
    began = last = time.monotonic()
    first: list[int] = []

    def told(answered: int, total: int, failed: int) -> None:
        nonlocal last
        now = time.monotonic()
        first.append(answered) if not first else None
        if answered < total and now - last < EVERY_S:
            return
        last = now
        rate = max(answered - first[0], 1) / max(now - began, 1e-9)
        left = (total - answered) / rate
        eta = f", {rate:.1f}/s, {int(left // 60)}:{int(left % 60):02d} to go"
        bad = f", {failed} failed" if failed else ""
        say(f"{label}: {answered}/{total}{eta}{bad}")

    return told
