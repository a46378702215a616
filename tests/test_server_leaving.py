"""Clients that do not read, that leave before their answer, and requests that are half right."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from typing import Any

import pytest

from mmtok import InputError, Pipeline, load
from mmtok.serving import server
from mmtok.serving.batching import Batcher
from mmtok.serving.chat import read_request
from mmtok.serving.limits import Limits, RefusedError
from mmtok.serving.server import create_app
from tests.test_server import ask, text_part
from tests.test_server_inside import POST, REST, metric


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(load("tiny"))


def body(**options: Any) -> bytes:
    return json.dumps({"messages": ask(text="hi"), "max_tokens": 3} | options).encode()


@pytest.mark.parametrize("pause_s", [60.0, 0.06])
def test_a_client_that_does_not_read_gives_its_place_up(pipe: Pipeline, pause_s: float) -> None:
    """Also one that reads a little now and then."""
    app, sent = create_app(pipe, limits=Limits(send_s=0.1)), list[float]()

    async def receive() -> dict[str, Any]:
        if sent:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": body(stream=True), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(time.monotonic())
        await asyncio.sleep(pause_s)

    async def talk() -> None:
        async with asyncio.timeout(30):
            await app(POST | REST, receive, send)
        assert await metric(app, "mmtok_requests_inside") == 0

    asyncio.run(talk())
    assert len(sent) == (1 if pause_s > 1 else 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_not_answered(
    pipe: Pipeline, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, ran = threading.Event(), list[int]()

    def answer(self: Batcher, batch: Any) -> None:
        ran.append(len(batch))
        held.wait(30)
        raise InputError("no")

    monkeypatch.setattr(Batcher, "_generate", answer)
    monkeypatch.setattr(server, "_LOOK_S", 0.05)
    app, left = create_app(pipe, batch=1), asyncio.Event()

    async def visit(leaves: bool) -> None:
        told: list[dict[str, Any]] = [
            {"type": "http.request", "body": body(stream=stream), "more_body": False}
        ]

        async def receive() -> dict[str, Any]:
            if told:
                return told.pop()
            await (left.wait() if leaves else asyncio.sleep(60))
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None: ...

        await app(POST | REST, receive, send)

    async def talk() -> None:
        first = asyncio.create_task(visit(leaves=False))
        while not ran:
            await asyncio.sleep(0.01)
        # one in the queue, one that waits for a place to decode in
        leavers = [asyncio.create_task(visit(leaves=True)) for _ in range(2)]
        await asyncio.sleep(0.2)
        assert await metric(app, "mmtok_requests_inside") == 3
        left.set()
        async with asyncio.timeout(20):
            await asyncio.gather(*leavers)
        assert await metric(app, "mmtok_requests_inside") == 1
        held.set()
        await first

    try:
        asyncio.run(talk())
    finally:
        held.set()
    assert ran == [1]


def test_what_is_cancelled_leaves_the_queue_and_the_rest_is_answered(pipe: Pipeline) -> None:
    asked = read_request(json.loads(body()), Limits())
    batcher = Batcher(pipe, window_s=0.2)
    try:
        assert batcher.submit(asked).cancel()
        assert not batcher._queue
        time.sleep(0.4)
        assert batcher.submit(asked).result(60).text
    finally:
        batcher.close()


@pytest.mark.parametrize(
    "options",
    [
        {"stream": "false"},
        {"stream": 1},
        {"stream_options": "x"},
        {"stream_options": []},
        {"stream_options": {"include_usage": "no"}},
        {"stream_options": {"usage": True}},
        {"n": True},
        {"frequency_penalty": False},
    ],
)
def test_types_are_strict(options: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as refused:
        read_request(json.loads(body(**options)), Limits())
    assert refused.value.status == 400
    assert next(iter(options)) in refused.value.reason or "include_usage" in refused.value.reason


@pytest.mark.parametrize(
    "options",
    [
        {"stop": "\0" * 10**6},
        {"x" * 10**6: 1},
        {"seed": {"a": [["b" * 10**6] * 999] * 999}},
        {"temperature": "x" * 10**6},
        {"max_tokens": int("9" * 4000)},
        {"max_tokens": "9" * 10**6},
        {"messages": ask({"type": "y" * 10**6})},
    ],
)
def test_a_reason_does_not_repeat_all_of_what_was_given(options: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as refused:
        read_request({"messages": ask(text="hi")} | options, Limits())
    assert len(refused.value.reason) < 200


@pytest.mark.parametrize("part", [text_part(5), {"type": "text"}])  # type: ignore[arg-type]
def test_a_text_that_is_none_is_called_so(part: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="text must be a string, got"):
        read_request({"messages": [{"role": "user", "content": [part]}]}, Limits())


@pytest.mark.parametrize("name", ["fetch_s", "body_s", "send_s"])
@pytest.mark.parametrize("value", [float("inf"), 1e10, 10**10])
def test_times_are_at_most_a_day(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} must be (at most 86400|a finite number)"):
        Limits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"send_s": "60"}, {"waiting": "5"}, {"media_root": "/data"}])
def test_limits_are_of_their_types(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be"):
        Limits(**wrong)


def test_a_key_that_is_no_text_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="not UTF-8"):
        create_app(pipe, api_key=os.fsdecode(b"\xff\xfe"))
