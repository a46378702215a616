"""Dynamic batching: requests that can share a forward wait a moment for one another.

One thread owns the model. It takes the oldest request and those behind it that agree in everything
that a batch must share, up to a size. An error of a batch is looked for one request at a time, so
that none is answered for another's fault.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtok.accounting.timing import StageTimer
from mmtok.errors import InputError
from mmtok.models.counts import tokens_per_prompt
from mmtok.serving.chat import Ask
from mmtok.serving.limits import RefusedError

if TYPE_CHECKING:
    from mmtok.accounting.ledger import Ledger
    from mmtok.models.lvlm import LVLM
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


Heard = Callable[[str], None]
"""Is told an answer as far as it goes, again and again; from the batcher's thread."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A request in the queue."""

    ask: Ask
    future: Future[Answer]
    heard: Heard | None


class _Listener:
    """A streamer for `generate` that takes any number of rows.

    Args:
        decode: ids -> text.
        heard: of each row, None where nobody listens.
        ends: ids that end a row.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], heard: Sequence[Heard | None], ends: Sequence[int]
    ) -> None:
        self.decode, self.heard, self.ends = decode, list(heard), set(ends)
        self.ids: list[list[int]] = [[] for _ in heard]
        self.started = False

    def put(self, value: Tensor) -> None:
        """The prompt first, then a token of each row."""
        if not self.started:
            self.started = True
            return
        for row, token in enumerate(value.flatten().tolist()):
            heard = self.heard[row]
            if heard is None:
                continue
            self.ids[row].append(token)
            text = self.decode(self.ids[row])
            if not text.endswith("\ufffd"):  # half a character
                heard(text)
            if token in self.ends:
                self.heard[row] = None

    def end(self) -> None:
        """No more tokens."""


class Batcher:
    """Runs requests through a pipeline in batches, on a thread of its own.

    Args:
        pipe: the pipeline.
        size: most requests of a batch.
        window_s: how long the oldest request waits for company.
    """

    def __init__(self, pipe: Pipeline, *, size: int = 8, window_s: float = 0.01) -> None:
        self.pipe, self.size, self.window_s = pipe, size, window_s
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="mmtok-batcher", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask, heard: Heard | None = None) -> Future[Answer]:
        """Queue a request; `heard` is told its answer as it grows. Cancelling the future ends it.

        Raises:
            RefusedError: 503, the server is shutting down.
        """
        with self._changed:
            if self._closing:
                raise RefusedError(503, "the server is shutting down")
            future: Future[Answer] = Future()
            waiting = _Waiting(ask, future, heard)
            self._queue.append(waiting)
            self._changed.notify()
        future.add_done_callback(lambda _: self._drop(waiting))
        return future

    def _drop(self, done: _Waiting) -> None:
        """Let go of a request that was cancelled before its turn, and of its pictures."""
        with self._changed, suppress(ValueError):
            self._queue.remove(done)

    def close(self) -> None:
        """Answer what is queued, then stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            live = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)

    def _next(self) -> list[_Waiting] | None:
        """The next batch, empty if its clients left meanwhile; None when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            deadline = time.monotonic() + self.window_s
            while len(self._queue) < self.size and not self._closing:
                if not self._changed.wait(max(deadline - time.monotonic(), 0)):
                    break
            if not self._queue:
                return None if self._closing else []
            key = self._queue[0].ask.batch_key
            taken = [one for one in self._queue if one.ask.batch_key == key][: self.size]
            self._queue = deque(one for one in self._queue if one not in taken)
            return taken

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            made = self._generate(batch)
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    self._answer([one])
                return
            refused = isinstance(error, InputError)
            reason = " ".join(str(error).split())
            batch[0].future.set_exception(RefusedError(400, reason) if refused else error)
            return
        for one, answer in zip(batch, made, strict=True):
            one.future.set_result(answer)

    def _generate(self, batch: Sequence[_Waiting]) -> list[Answer]:
        options: dict[str, Any] = dict(batch[0].ask.options)
        if any(one.heard for one in batch):
            options["streamer"] = self._listener([one.heard for one in batch])
        lvlm = self.pipe.lvlm
        timer = StageTimer(lvlm.device, cpu_peak=True)
        with timer.stage("source"):
            inputs = lvlm.inputs_batch([one.ask.prompt for one in batch])
        mask = inputs["attention_mask"]
        _check_length(lvlm, int(mask.sum(1).max()), options["max_new_tokens"])
        result = self.pipe.run(inputs, timer=timer, **options)
        counts = tokens_per_prompt(result.reduction, inputs["input_ids"])
        rows = zip(result.texts, mask.sum(1).tolist(), counts, result.new_tokens, strict=True)
        return [
            Answer(
                text=text,
                prompt_tokens=n,
                visual_tokens=visual,
                new_tokens=new,
                ledger=result.ledger,
                batch=len(batch),
            )
            for text, n, visual, new in rows
        ]

    def _listener(self, heard: Sequence[Heard | None]) -> _Listener:
        lvlm = self.pipe.lvlm
        ends = lvlm.model.generation_config.eos_token_id
        several = ends if isinstance(ends, list) else [] if ends is None else [ends]
        return _Listener(lambda ids: lvlm.decode(torch.tensor([ids]))[0], heard, several)


def _check_length(lvlm: LVLM, prompt: int, new: int) -> None:
    """Refuse a prompt that would run out of positions before its answer is whole.

    Raises:
        InputError: its tokens and those of the answer are more than the text model was made for.
    """
    most = getattr(lvlm.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and prompt + new > most:
        raise InputError(
            f"a prompt of {prompt} tokens and max_tokens {new}, expected at most {most} together"
        )
