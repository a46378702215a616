"""The chat endpoint, asked by the official client and by hostile ones."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from PIL import Image

from mmtok import Pipeline, load
from mmtok.serving.limits import Limits
from mmtok.serving.server import create_app
from tests.videos import write

KEY = "sk-test"
SPEC = "todre(keep=0.25)"


def png(number: int, side: int = 112) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).rotate(9 * number).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def ask(*parts: dict[str, Any], text: str = "How many items are in the image?") -> Any:
    return [{"role": "user", "content": [*parts, text_part(text)]}]


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(load("tiny"), SPEC)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "open").mkdir()
    (folder / "open" / "é.png").write_bytes(png(1))
    (folder / "secret.png").write_bytes(png(2))
    (folder / "open" / "link.png").symlink_to(folder / "secret.png")
    return folder


@pytest.fixture(scope="module")
def port(pipe: Pipeline, root: Path) -> Iterator[int]:
    limits = Limits(body_bytes=2**20, pixels=2**20, media_root=root / "open", waiting=300)
    app = create_app(pipe, limits=limits, api_key=KEY, batch=4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=number, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield number
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(port: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)


def test_the_official_client_gets_the_pipelines_answer(client: Any, pipe: Pipeline) -> None:
    picture = Image.open(io.BytesIO(png(3)))
    want = pipe.generate([picture], "How many items are in the image?", max_new_tokens=4)
    got = client.chat.completions.create(
        model="tiny", messages=ask(image(data_url(png(3)))), max_tokens=4
    )
    assert got.choices[0].message.content == want.text
    assert got.choices[0].finish_reason == ("length" if want.new_tokens[0] == 4 else "stop")
    assert got.usage.completion_tokens == want.new_tokens[0]
    assert got.usage.prompt_tokens == int(want.inputs["attention_mask"].sum())
    account = got.usage.model_extra["mmtok"]
    stages = [row["stage"] for row in account["ledger"]["stages"]]
    assert stages[-2:] == ["prefill", "decode"]
    assert account["ledger"]["meta"]["visual_tokens"] == {"in": 196, "out": 49}
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_conversation_goes_on(client: Any, pipe: Pipeline) -> None:
    said = [
        {"role": "system", "content": "Answer the question."},
        *ask(image(data_url(png(3)))),
        {"role": "assistant", "content": "2"},
        *ask(image(data_url(png(4))), text="And in this?"),
    ]
    got = client.chat.completions.create(model="tiny", messages=said, max_tokens=4)
    pictures = [Image.open(io.BytesIO(png(n))) for n in (3, 4)]
    place = {"type": "image"}
    question = "How many items are in the image?"
    turns = [
        {"role": "system", "content": [text_part("Answer the question.")]},
        {"role": "user", "content": [place, text_part(question)]},
        {"role": "assistant", "content": [text_part("2")]},
        {"role": "user", "content": [place, text_part("And in this?")]},
    ]
    want = pipe.generate(pictures, turns, max_new_tokens=4)
    assert got.choices[0].message.content == want.text
    prompt = pipe.lvlm.processor.tokenizer.decode(want.inputs["input_ids"][0])
    assert prompt.count("ASSISTANT") == 2
    assert got.usage.prompt_tokens == int(want.inputs["attention_mask"].sum())


def test_a_stream_says_the_same(client: Any) -> None:
    options = {"model": "tiny", "messages": ask(image(data_url(png(3)))), "max_tokens": 4}
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_videos_and_allowed_files(client: Any, tmp_path: Path, root: Path, pipe: Pipeline) -> None:
    clip = write(tmp_path / "a.mp4", count=12)
    video = {"type": "video_url", "video_url": {"url": data_url(clip.read_bytes(), "video/mp4")}}
    options = {"model": "tiny", "max_tokens": 3}
    got = client.chat.completions.create(messages=ask(video), **options)
    want = pipe.generate(
        text="How many items are in the image?", videos=[str(clip)], max_new_tokens=3
    )
    assert got.choices[0].message.content == want.text
    url = (root / "open" / "é.png").as_uri()
    assert client.chat.completions.create(messages=ask(image(url)), **options).usage


@pytest.mark.parametrize(
    ("messages", "status", "said"),
    [
        (ask(image(data_url(b"no picture"))), 400, "not an image"),
        (ask(image(data_url(png(1)[:90]))), 400, "damaged|not an image"),
        (ask(image("data:image/png;base64,###")), 400, "base64"),
        (ask(image("data:image/png,raw")), 400, "base64"),
        (ask(image(data_url(png(0, 1200)))), 400, "at most"),
        (ask(image("http://127.0.0.1/a.png")), 400, "remote URLs are off"),
        (ask(image("ftp://example.com/a.png")), 400, "data: URL"),
        (ask(image("http://[bad/a.png")), 400, "malformed"),
        (ask({"type": "input_audio"}), 400, "input_audio"),
        (ask({"type": "video_url", "video_url": {"url": data_url(png(1))}}), 400, "does not hold"),
        ([{"role": "assistant", "content": "hello"}], 400, "in turn"),
        ([*ask(text="a"), *ask(text="b")], 400, "in turn"),
        ([], 400, "in turn"),
        (ask(text="x" * 30_000), 413, "characters"),
        (ask(*[image(data_url(png(0, 8)))] * 17), 413, "more than 16"),
    ],
)
def test_bad_requests_say_why(client: Any, messages: Any, status: int, said: str) -> None:
    with pytest.raises(openai.APIStatusError, match=said) as caught:
        client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
    assert caught.value.status_code == status


@pytest.mark.parametrize("path", ["../secret.png", "link.png", "none.png", "%2e%2e/secret.png", ""])
def test_files_outside_the_root_cannot_be_told_from_missing_ones(
    client: Any, root: Path, path: str
) -> None:
    url = f"file://{root}/open/{path}"
    with pytest.raises(openai.BadRequestError, match="no such file below the allowed folder"):
        client.chat.completions.create(model="tiny", messages=ask(image(url)), max_tokens=2)


@pytest.mark.parametrize(
    "options",
    [{"max_tokens": 0}, {"max_tokens": 10**6}, {"temperature": 9}, {"n": 2}, {"logprobs": True}],
)
def test_unsupported_options_are_refused(client: Any, options: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=ask(text="hi"), **options)


def test_a_key_is_needed(port: int) -> None:
    stranger = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="no", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model="tiny", messages=ask(text="hi"))
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def post(port: int, body: bytes, headers: dict[str, str]) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in {"Authorization": f"Bearer {KEY}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    with contextlib.suppress(BrokenPipeError):
        connection.send(body)
    status = connection.getresponse().status
    connection.close()
    return status


def test_oversized_and_malformed_bodies(port: int) -> None:
    assert post(port, b"", {"Content-Length": str(10**8)}) == 413
    chunk = b"40000\r\n" + b"x" * 0x40000 + b"\r\n"
    assert post(port, chunk * 5, {"Transfer-Encoding": "chunked"}) == 413
    for body in (b"{", b"[" * 100_000, b"null", b"\xff"):
        assert post(port, body, {"Content-Length": str(len(body))}) == 400


def test_many_at_once_good_and_bad(client: Any, port: int, pipe: Pipeline) -> None:
    """200 concurrent requests: every one is answered, the good ones as by the pipeline alone."""
    questions = ["How many items are in the image?", "Is there a bag in the image?"]
    wanted = {
        (number, text): pipe.generate(
            [Image.open(io.BytesIO(png(number)))], text, max_new_tokens=3
        ).text
        for number in range(4)
        for text in questions
    }

    def one(number: int) -> bool:
        good, text = number % 5 != 0, questions[number % 2]
        content = png(number % 4) if good else png(number % 4)[:60]
        messages = ask(image(data_url(content)), text=text)
        try:
            got = client.chat.completions.create(model="tiny", messages=messages, max_tokens=3)
        except openai.BadRequestError:
            return not good
        return good and got.choices[0].message.content == wanted[number % 4, text]

    with ThreadPoolExecutor(200) as pool:
        assert all(pool.map(one, range(200)))
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    assert 'mmtok_requests_total{status="200"}' in metrics
    assert "mmtok_requests_inside 0.0" in metrics
    connection.request("GET", "/health")
    assert b'"ok"' in connection.getresponse().read()
