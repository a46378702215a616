"""What counts as inside, what is refused before any work, and where the limits come from."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from dataclasses import fields
from functools import partialmethod
from typing import Any

import pytest

from mmtok import InputError, Pipeline, load
from mmtok.cli.serve import serve
from mmtok.serving.batching import Batcher
from mmtok.serving.chat import read_request
from mmtok.serving.limits import Limits, RefusedError
from mmtok.serving.server import create_app
from tests.test_server import ask, data_url, image, png, text_part

GET = {"type": "http", "method": "GET", "path": "/metrics", "raw_path": b"/metrics"}
POST = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
REST = {"query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http"}
REST["asgi"] = {"spec_version": "2.4"}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(load("tiny"))


async def received() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def metric(app: Any, name: str) -> float:
    """What /metrics says of one."""
    said = bytearray()

    async def send(message: dict[str, Any]) -> None:
        said.extend(message.get("body", b""))

    await app(GET | REST, received, send)
    (found,) = re.findall(rf"^{name} (.+)$", said.decode(), re.MULTILINE)
    return float(found)


@pytest.mark.parametrize("gone", [False, True])
def test_a_stream_is_inside_until_it_ends(pipe: Pipeline, gone: bool) -> None:
    """And no longer, also if the client goes away in the middle of it."""
    body = json.dumps({"messages": ask(text="hi"), "stream": True, "max_tokens": 3}).encode()
    app, inside, counted = create_app(pipe), list[float](), list[float]()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            inside.append(await metric(app, "mmtok_requests_inside"))
            counted.append(await metric(app, "mmtok_request_seconds_count"))
            if gone:
                raise OSError

    async def talk() -> None:
        try:
            await app(POST | REST, receive, send)
        except Exception:
            assert gone
        assert await metric(app, "mmtok_requests_inside") == 0
        assert await metric(app, "mmtok_request_seconds_count") == 1

    asyncio.run(talk())
    assert len(inside) == 1 if gone else len(inside) > 2
    assert set(inside) == {1}
    assert set(counted) == {0}


@pytest.mark.parametrize("same", [True, False])
def test_a_stream_whose_batch_fails_goes_on_or_says_so(
    pipe: Pipeline, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampled answer that is drawn anew may differ from what was sent of it already."""
    own, said = Batcher._generate, bytearray()

    def generate(self: Batcher, batch: Any) -> Any:
        if len(batch) == 1:
            return own(self, batch)
        for one in batch:
            one.heard("" if same else "something else")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Batcher, "_generate", generate)
    monkeypatch.setattr(Batcher, "__init__", partialmethod(Batcher.__init__, window_s=5.0))
    body = json.dumps({"messages": ask(text="hi"), "stream": True, "max_tokens": 3}).encode()
    app = create_app(pipe, batch=2)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        said.extend(message.get("body", b""))

    async def talk() -> None:
        await asyncio.gather(*(app(POST | REST, receive, send) for _ in range(2)))

    asyncio.run(talk())
    assert said.count(b"data: [DONE]") == (2 if same else 0)
    assert said.count(b"not what its beginning was") == (0 if same else 2)


def test_an_empty_key_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="the API key is empty"):
        create_app(pipe, api_key="")


@pytest.mark.parametrize(("given", "status"), [("sésame", 200), ("sesame", 401)])
def test_a_key_may_hold_any_letter(pipe: Pipeline, given: str, status: int) -> None:
    said = list[int]()
    headers = [(b"authorization", f"Bearer {given}".encode())]

    async def send(message: dict[str, Any]) -> None:
        if "status" in message:
            said.append(message["status"])

    scope = GET | REST | {"path": "/v1/models", "headers": headers}
    asyncio.run(create_app(pipe, api_key="sésame")(scope, received, send))
    assert said == [status]


@pytest.mark.parametrize("kind", ["image_url", "video_url", "input_audio"])
def test_a_system_message_takes_text_alone(kind: str) -> None:
    part = image(data_url(png(1))) | {"type": kind}
    said = [{"role": "system", "content": [text_part("Be short."), part]}, *ask(text="hi")]
    with pytest.raises(RefusedError, match="a system message takes text alone") as refused:
        read_request({"messages": said}, Limits())
    assert refused.value.status == 400


def test_the_options_of_serve_are_the_limits_own() -> None:
    given = {name: one.default for name, one in inspect.signature(serve).parameters.items()}
    own = {field.name: field.default for field in fields(Limits)}
    shared = own.keys() & given.keys()
    assert shared == {"pixels", "media", "new_tokens", "fetch_s", "waiting", "media_root", "remote"}
    assert {name: given[name] for name in shared} == {name: own[name] for name in shared}
    assert given["max_body"] * 2**20 == own["body_bytes"]


@pytest.mark.parametrize("bound", ["frames", "pixels", "fetch_s", "waiting", "body_bytes"])
def test_a_bound_of_nothing_is_refused(bound: str) -> None:
    with pytest.raises(InputError, match=f"{bound} must be above 0, got 0"):
        Limits(**{bound: 0})  # type: ignore[arg-type]
