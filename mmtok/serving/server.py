"""An OpenAI-compatible chat endpoint over a pipeline, with a ledger in every answer."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from mmtok.errors import InputError
from mmtok.serving.batching import Answer, Batcher
from mmtok.serving.chat import Ask, read_request
from mmtok.serving.limits import Limits, RefusedError
from mmtok.serving.replies import event, failure, stream_head, stream_tail, whole_reply

if TYPE_CHECKING:
    from mmtok.pipeline import Pipeline

_T = TypeVar("_T")
_GONE = "the client went away"
_LOOK_S = 1.0  # between looks whether a client is still there


class _Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mmtok_requests", "Requests by status.", ["status"], registry=self.registry
        )
        self.tokens = Counter("mmtok_tokens", "Tokens by kind.", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "mmtok_request_seconds", "From request to answer.", registry=self.registry
        )
        self.batch = Histogram(
            "mmtok_batch_size",
            "Requests answered together.",
            buckets=(1, 2, 4, 8, 16),
            registry=self.registry,
        )
        self.inside = Gauge("mmtok_requests_inside", "In work or waiting.", registry=self.registry)

    def answered(self, answer: Answer) -> None:
        """Add one answer."""
        self.batch.observe(answer.batch)
        self.tokens.labels("prompt").inc(answer.prompt_tokens)
        self.tokens.labels("completion").inc(answer.new_tokens)


class _Stream(StreamingResponse):
    """Events, and the visit that ends when they do or the client goes away."""

    visit: ExitStack
    send_s: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, until they or what the client may keep us waiting have come to an end."""
        left = self.send_s

        async def timed(message: Message) -> None:
            nonlocal left
            began = time.monotonic()
            async with asyncio.timeout(left):
                await send(message)
            left -= time.monotonic() - began

        with self.visit, suppress(TimeoutError, ClientDisconnect):
            await super().__call__(scope, receive, timed)


class _Desk:
    """Takes requests in, as many as the limits allow, and brings them to the batcher."""

    def __init__(self, pipe: Pipeline, limits: Limits, api_key: str | None, batch: int) -> None:
        self.pipe, self.limits, self.api_key = pipe, limits, _key(api_key)
        self.batcher = Batcher(pipe, size=batch)
        self.metrics = _Metrics()
        self.inside = 0
        # Only so many requests are held decoded at once; the others wait as the bytes they are.
        self.decoded = asyncio.Semaphore(2 * batch)

    def check_key(self, request: Request) -> None:
        """Refuse a client without the key."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        if self.api_key is not None and not secrets.compare_digest(given, self.api_key):
            raise RefusedError(401, "missing or wrong API key")

    async def serve(self, request: Request) -> Response:
        """The answer to one request, or the refusal of it."""
        with ExitStack() as visit:
            visit.enter_context(self._visit())
            try:
                self.check_key(request)
                if self.inside > self.limits.waiting:
                    raise RefusedError(429, f"{self.limits.waiting} requests are inside, try later")
                data = await _body(request, self.limits)
                reply = await self._answer(request, data)
            except RefusedError as error:
                reply = _refusal(error)
            except Exception:
                traceback.print_exc()
                reply = _refusal(RefusedError(500, "a bug in mmtok: see the server's log"))
            self.metrics.requests.labels(str(reply.status_code)).inc()
            if isinstance(reply, _Stream):
                reply.visit, reply.send_s = visit.pop_all(), self.limits.send_s
        return reply

    @contextmanager
    def _visit(self) -> Iterator[None]:
        """One request, from when it comes until its answer is whole."""
        began = time.monotonic()
        self.inside += 1
        self.metrics.inside.set(self.inside)
        try:
            yield
        finally:
            self.inside -= 1
            self.metrics.inside.set(self.inside)
            self.metrics.seconds.observe(time.monotonic() - began)

    async def _answer(self, request: Request, data: bytes) -> Response:
        """The response to a request's body; a streamed one begins with the first token."""
        loop, said = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def heard(text: str) -> None:
            loop.call_soon_threadsafe(said.put_nowait, text)

        turn = asyncio.ensure_future(self.decoded.acquire())
        try:
            await _while_there(request, turn)
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.decoded.release()
            raise
        try:
            if await request.is_disconnected():
                raise RefusedError(400, _GONE)
            wanted = await asyncio.to_thread(lambda: read_request(_json(data), self.limits))
            future = self.batcher.submit(wanted, heard if wanted.stream else None)
        except BaseException:
            self.decoded.release()
            raise
        waiting = asyncio.wrap_future(future)
        waiting.add_done_callback(lambda _: self.decoded.release())
        waiting.add_done_callback(lambda _: said.put_nowait(None))
        try:
            first = await _while_there(request, asyncio.ensure_future(said.get()))
        except BaseException:
            waiting.cancel()
            raise
        if first is None or not wanted.stream:
            answer = await waiting
            if not wanted.stream:
                self.metrics.answered(answer)
                return JSONResponse(whole_reply(self.pipe, wanted, answer))
        events = self._events(wanted, first, said, waiting)
        return _Stream(events, media_type="text/event-stream")

    async def _events(
        self,
        wanted: Ask,
        first: str | None,
        said: asyncio.Queue[str | None],
        waiting: asyncio.Future[Answer],
    ) -> AsyncIterator[str]:
        """Server-sent events: the text as it comes, why it ended, and what it cost."""
        head, sent = stream_head(self.pipe), ""
        yield event(head, {"role": "assistant", "content": ""})
        text = first
        while text is not None:
            if text.startswith(sent) and text != sent:
                yield event(head, {"content": text[len(sent) :]})
                sent = text
            text = await said.get()
        try:
            answer = await waiting
        except Exception:
            traceback.print_exc()
            yield failure("a bug in mmtok")
            return
        self.metrics.answered(answer)
        for last in stream_tail(head, wanted, answer, sent):
            yield last


def create_app(
    pipe: Pipeline, *, limits: Limits | None = None, api_key: str | None = None, batch: int = 8
) -> FastAPI:
    """The application. When it stops, what is inside is answered first.

    Args:
        pipe: answers.
        limits: of requests.
        api_key: what clients must send as a bearer token; None: nothing.
        batch: most requests answered together.

    Raises:
        InputError: the key is empty, which a client without any would match, or not UTF-8.
    """
    desk = _Desk(pipe, limits or Limits(), api_key, batch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(desk.batcher.close)

    app = FastAPI(title="mmtok", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok", "model": pipe.lvlm.name, "reduce": pipe.spec}

    @app.get("/metrics")
    def metrics() -> Response:
        text = generate_latest(desk.metrics.registry)
        return Response(text, media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    def models(request: Request) -> Response:
        try:
            desk.check_key(request)
        except RefusedError as error:
            return _refusal(error)
        card = {"id": pipe.lvlm.name, "object": "model", "created": 0, "owned_by": "mmtok"}
        return JSONResponse({"object": "list", "data": [card]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await desk.serve(request)

    return app


def _key(given: str | None) -> bytes | None:
    if given == "":
        raise InputError("the API key is empty: expected one, or none (MMTOK_API_KEY unset)")
    try:
        return None if given is None else given.encode()
    except UnicodeEncodeError:
        raise InputError("the API key (MMTOK_API_KEY) is not UTF-8, expected text") from None


async def _while_there(request: Request, awaited: asyncio.Future[_T]) -> _T:
    """What is awaited, unless the client leaves before."""
    try:
        while not (await asyncio.wait({awaited}, timeout=_LOOK_S))[0]:
            if await request.is_disconnected():
                raise RefusedError(400, _GONE)
        return awaited.result()
    finally:
        awaited.cancel()


async def _body(request: Request, limits: Limits) -> bytes:
    """The request's body, never more of it than allowed, and in time."""
    refusal = RefusedError(413, f"request above {limits.body_bytes} bytes")
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > limits.body_bytes:
        raise refusal
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.body_bytes:
                    raise refusal
                parts.append(chunk)
    except TimeoutError:
        raise RefusedError(408, f"the body took longer than {limits.body_s:.0f} s") from None
    except ClientDisconnect:
        raise RefusedError(400, _GONE) from None
    return b"".join(parts)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON") from None


def _refusal(error: RefusedError) -> Response:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    body = {"message": error.reason, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": body}, status_code=error.status)
