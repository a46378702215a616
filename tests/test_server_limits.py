"""Clients and hosts that are slow on purpose, and what a request's own share of a batch is."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from mmtok import Pipeline, load
from mmtok.io.video import Clip
from mmtok.serving import fetch as fetching
from mmtok.serving.batching import Batcher
from mmtok.serving.chat import decode, read_request
from mmtok.serving.limits import Limits, RefusedError
from mmtok.serving.server import _body
from tests.test_server import SPEC, ask, data_url, image, png
from tests.videos import write


def request(*messages: Any, pause_s: float = 0.0) -> Request:
    waiting = list(messages)

    async def receive() -> Any:
        await asyncio.sleep(pause_s)
        return waiting.pop(0)

    return Request({"type": "http", "headers": []}, receive)


def test_a_body_that_drips_in_is_refused() -> None:
    drops = [{"type": "http.request", "body": b"x", "more_body": True}] * 100
    with pytest.raises(RefusedError, match="took longer") as refused:
        asyncio.run(_body(request(*drops, pause_s=0.02), Limits(body_s=0.1)))
    assert refused.value.status == 408


def test_a_client_that_goes_away_is_no_bug() -> None:
    with pytest.raises(RefusedError, match="went away"):
        asyncio.run(_body(request({"type": "http.disconnect"}), Limits()))


@pytest.mark.parametrize("head", [b"X-Slow: ", b"\r\n", b"Connection: close\r\n\r\n"])
def test_a_host_that_drips_is_given_up(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        client, _ = server.accept()
        try:
            client.sendall(b"HTTP/1.1 200 OK\r\n" + head)
            while True:
                client.sendall(b"a")
                time.sleep(0.02)
        except OSError:
            client.close()

    threading.Thread(target=drip, daemon=True).start()
    monkeypatch.setattr(fetching, "public_address", lambda host, port: "127.0.0.1")
    limits = Limits(remote=True, fetch_s=0.3)
    began = time.monotonic()
    with pytest.raises(RefusedError, match=r"took longer than 0\.3 s"):
        fetching.fetch(f"http://example.com:{server.getsockname()[1]}/a", limits)
    assert time.monotonic() - began < 5
    server.close()


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}] * 10_000,
        [{"role": "user", "content": [{"type": "text", "text": ""}] * 257}],
    ],
)
def test_messages_and_parts_are_counted(messages: list[Any]) -> None:
    last = {"role": "user", "content": ""}
    talk = [*messages, last] if len(messages) > 1 else messages
    with pytest.raises(RefusedError, match="expected at most 256") as refused:
        read_request({"messages": talk}, Limits())
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("given", "sampled"),
    [(None, False), (0, False), (1e-320, False), (1e-40, False), (1e-3, True), (1, True)],
)
def test_temperatures_near_zero_are_greedy(given: float | None, sampled: bool) -> None:
    asked = read_request({"messages": ask(), "temperature": given, "top_p": 0.5}, Limits())
    options = {"do_sample": True, "temperature": given, "top_p": 0.5} if sampled else {}
    assert dict(asked.options) == {"max_new_tokens": 128} | options


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_a_bool_is_no_number(name: str) -> None:
    with pytest.raises(RefusedError, match=f"{name} must be in"):
        read_request({"messages": ask(), name: True}, Limits())


@pytest.mark.parametrize("frames", [3, 10])
def test_a_clip_has_the_frames_the_limits_say(tmp_path: Path, frames: int) -> None:
    content = write(tmp_path / "a.mp4", count=12).read_bytes()
    clip = decode(content, Limits(frames=frames), 2**22)
    assert isinstance(clip, Clip)
    assert len(clip.frames) == frames


def test_a_video_of_too_many_frames_is_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "a.mp4", count=12).read_bytes()
    with pytest.raises(RefusedError, match="media: a video of over 11 frames") as refused:
        decode(content, Limits(source_pixels=12 * 2**16 - 1), 2**22)
    assert refused.value.status == 400


def test_a_prompt_longer_than_the_model_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(load("tiny"))
    monkeypatch.setattr(pipe, "run", lambda *a, **k: pytest.fail("the model was run"))
    batcher = Batcher(pipe)
    try:
        asked = read_request({"messages": ask(text="a " * 10_000)}, Limits())
        with pytest.raises(RefusedError, match="tokens and max_tokens 128, expected") as refused:
            batcher.submit(asked).result(60)
    finally:
        batcher.close()
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "host",
    [
        "[::127.0.0.1]",
        "[fec0::1]",
        "[64:ff9b:1::7f00:1]",
        "[::ffff:0:7f00:1]",
        "[3fff::1]",
    ],
)
def test_ipv6_addresses_that_are_not_given_out_are_never_fetched(host: str) -> None:
    with pytest.raises(RefusedError, match="not a public address"):
        fetching.fetch(f"http://{host}:9/a.png", Limits(remote=True))


def test_all_urls_of_a_request_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding between fetches does not count."""
    given, clock = [], [100.0]

    def fetched(url: str, limits: Limits, until: float) -> bytes:
        given.append(until - clock[0])
        clock[0] += 10
        return png(1)

    def decoded(*arguments: Any) -> Any:
        clock[0] += 1000
        return decode(*arguments)

    monkeypatch.setattr("mmtok.serving.chat.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("mmtok.serving.chat.fetch", fetched)
    monkeypatch.setattr("mmtok.serving.chat.decode", decoded)
    read_request({"messages": ask(image("http://a/1"), image("http://a/2"))}, Limits())
    assert given == [60, 50]
    monkeypatch.setattr(fetching, "public_address", lambda host, port: "127.0.0.1")
    with pytest.raises(RefusedError, match="took longer"):
        fetching.fetch("http://example.com:9/a", Limits(remote=True), time.monotonic() - 1)


def test_a_handshake_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        client, _ = server.accept()
        try:
            client.sendall(b"\x16\x03\x03\x40\x00")
            while True:
                client.sendall(b"\x02")
                time.sleep(0.02)
        except OSError:
            client.close()

    threading.Thread(target=drip, daemon=True).start()
    monkeypatch.setattr(fetching, "public_address", lambda host, port: "127.0.0.1")
    url, began = f"https://example.com:{server.getsockname()[1]}/a", time.monotonic()
    with pytest.raises(RefusedError, match="media URL"):
        fetching.fetch(url, Limits(remote=True), began + 0.3)
    assert time.monotonic() - began < 5
    server.close()


def test_each_answer_counts_its_own_visual_tokens() -> None:
    pipe = Pipeline(load("tiny"), SPEC)
    batcher = Batcher(pipe, window_s=0.2)
    try:
        picture = image(data_url(png(1)))
        asks = [
            read_request({"messages": ask(*[picture] * count), "max_tokens": 1}, Limits())
            for count in (1, 2)
        ]
        answers = [future.result(60) for future in [batcher.submit(one) for one in asks]]
    finally:
        batcher.close()
    assert [answer.batch for answer in answers] == [2, 2]
    assert [answer.visual_tokens for answer in answers] == [(196, 49), (392, 98)]


def test_who_listens_hears_the_answer_grow_in_a_batch_too() -> None:
    batcher = Batcher(Pipeline(load("tiny"), SPEC), window_s=0.2)
    heard: list[list[str]] = [[], []]
    try:
        asks = [
            replace(
                read_request({"messages": ask(image(data_url(png(n))), text=text)}, Limits()),
                options=(("max_new_tokens", 6), ("min_new_tokens", 6)),
            )
            for n, text in enumerate(["How many items are in the image?", "Is it a bag?", "What?"])
        ]
        listeners = [heard[0].append, None, heard[1].append]
        futures = [batcher.submit(one, to) for one, to in zip(asks, listeners, strict=True)]
        answers = [future.result(60) for future in futures]
    finally:
        batcher.close()
    assert answers[0].batch == 3
    for said, answer in zip(heard, (answers[0], answers[2]), strict=True):
        assert len(said) == 6
        assert said[-1] == answer.text
        assert all(more.startswith(less) for less, more in itertools.pairwise(said))
        assert len(set(said)) > 2
