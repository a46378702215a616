"""Nested stage scopes, shared by the FLOP counter and the timer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, Protocol, TypeVar

Mark = TypeVar("Mark")


class Meter(Protocol):
    """Anything a pipeline can report its stages to: a StageTimer or a FlopCount."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """What runs inside belongs to stage `name`."""
        ...


class Scopes(Generic[Mark]):
    """Cuts a run into stretches; each stretch belongs to the innermost stage that was open.

    A stage inside a stage (scoring inside prefill) is thus never counted twice.

    Attributes:
        spans: (stage, mark at the start, mark at the end) of every stretch, in order.
    """

    def __init__(self, mark: Callable[[], Mark]) -> None:
        self.spans: list[tuple[str, Mark, Mark]] = []
        self._mark = mark
        self._open: list[str] = []
        self._last: Mark | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs inside belongs to stage `name`, except what an inner stage claims."""
        self._cut()
        self._open.append(name)
        try:
            yield
        finally:
            self._cut()
            self._open.pop()

    def _cut(self) -> None:
        mark = self._mark()
        if self._open and self._last is not None:
            self.spans.append((self._open[-1], self._last, mark))
        self._last = mark
