"""Dynamic batching: requests that can share a forward wait a moment for one another.

One thread owns the model. It takes the oldest request and those behind it that agree in everything
that a batch must share, up to a size. An error of a batch is looked for one request at a time, so
that none is answered for another's fault.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtok.errors import InputError
from mmtok.serving.chat import Ask
from mmtok.serving.limits import RefusedError

if TYPE_CHECKING:
    from mmtok.accounting.ledger import Ledger
    from mmtok.models.encoder_seam import Media
    from mmtok.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one request gets.

    Attributes:
        text: the answer.
        prompt_tokens: of its prompt, as the processor made it.
        visual_tokens: of its pictures and clips, before and after reduction.
        new_tokens: generated ones.
        ledger: the account of the batch it was in.
        batch: requests in that batch.
    """

    text: str
    prompt_tokens: int
    visual_tokens: tuple[int, int]
    new_tokens: int
    ledger: Ledger
    batch: int


class Batcher:
    """Runs requests through a pipeline in batches, on a thread of its own.

    Args:
        pipe: the pipeline.
        size: most requests of a batch.
        window_s: how long the oldest request waits for company.
    """

    def __init__(self, pipe: Pipeline, *, size: int = 8, window_s: float = 0.01) -> None:
        self.pipe, self.size, self.window_s = pipe, size, window_s
        self._queue: deque[tuple[Ask, Future[Answer]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="mmtok-batcher", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask) -> Future[Answer]:
        """Queue a request.

        Raises:
            RefusedError: 503, the server is shutting down.
        """
        with self._changed:
            if self._closing:
                raise RefusedError(503, "the server is shutting down")
            future: Future[Answer] = Future()
            self._queue.append((ask, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer what is queued, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            live = [(ask, future) for ask, future in batch if future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)

    def _next(self) -> list[tuple[Ask, Future[Answer]]]:
        """The next batch; empty when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            deadline = time.monotonic() + self.window_s
            while len(self._queue) < self.size and not self._closing:
                if not self._changed.wait(max(deadline - time.monotonic(), 0)):
                    break
            if not self._queue:
                return []
            key = self._queue[0][0].batch_key
            taken = [pair for pair in self._queue if pair[0].batch_key == key][: self.size]
            gone = {id(pair) for pair in taken}  # comparing requests would compare pictures
            self._queue = deque(pair for pair in self._queue if id(pair) not in gone)
            return taken

    def _answer(self, batch: Sequence[tuple[Ask, Future[Answer]]]) -> None:
        try:
            made = self._generate([ask for ask, _ in batch])
        except Exception as error:
            if len(batch) > 1:
                for pair in batch:
                    self._answer([pair])
                return
            refused = isinstance(error, InputError)
            reason = " ".join(str(error).split())
            batch[0][1].set_exception(RefusedError(400, reason) if refused else error)
            return
        for (_, future), answer in zip(batch, made, strict=True):
            future.set_result(answer)

    def _generate(self, asks: Sequence[Ask]) -> list[Answer]:
        options: dict[str, Any] = dict(asks[0].options)
        result = self.pipe.generate_batch([ask.prompt for ask in asks], **options)
        mask = result.inputs["attention_mask"]
        rows = zip(result.texts, mask.sum(1).tolist(), result.new_tokens, strict=True)
        return [
            Answer(
                text=text,
                prompt_tokens=n,
                visual_tokens=_visual(result.reduction.media, row, mask.shape[1]),
                new_tokens=new,
                ledger=result.ledger,
                batch=len(asks),
            )
            for row, (text, n, new) in enumerate(rows)
        ]


def _visual(media: Sequence[Media], row: int, length: int) -> tuple[int, int]:
    """Visual tokens of one prompt of a batch, before and after reduction."""
    own = [
        (len(places), len(kept))
        for part in media
        for places, kept in zip(part.places, part.kept, strict=True)
        if int(places[0]) // length == row
    ]
    return sum(n for n, _ in own), sum(k for _, k in own)
