"""An OpenAI chat request as a prompt and options, everything unknown or too large refused."""

from __future__ import annotations

import reprlib
import time
from dataclasses import dataclass
from tempfile import NamedTemporaryFile
from typing import Any

from PIL.Image import Image

from mmtok.errors import InputError
from mmtok.io.image import load_image
from mmtok.io.video import Clip, is_video, load_video
from mmtok.models.lvlm import Prompt
from mmtok.models.turns import Turn
from mmtok.serving.fetch import fetch
from mmtok.serving.limits import Limits, RefusedError

_KNOWN = frozenset(
    (
        *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
        *("stream", "stream_options", "user"),
        *("n", "stop", "seed", "frequency_penalty", "presence_penalty"),
    )
)
# Parameters that change nothing at these values, and are not supported at others.
_NEUTRAL = {"n": (None, 1), "stop": (None, []), "seed": (None,)}
_NEUTRAL |= {"frequency_penalty": (None, 0), "presence_penalty": (None, 0)}
# A lower temperature picks the likeliest token all the same, but logits divided by it overflow.
_GREEDY_BELOW = 1e-3


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        images: decoded pictures.
        clips: decoded videos.
        turns: system, user and assistant in turn, with places for these.
        options: for `generate`, as sorted pairs: requests with the same ones share a batch.
        stream: whether the answer is sent as events.
        stream_usage: whether these end with the usage.
    """

    images: tuple[Image, ...]
    clips: tuple[Clip, ...]
    turns: tuple[Turn, ...]
    options: tuple[tuple[str, Any], ...]
    stream: bool
    stream_usage: bool

    @property
    def prompt(self) -> Prompt:
        """As the pipeline takes it."""
        return list(self.images), list(self.clips), self.turns

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Requests that agree in this can be answered in one batch."""
        shapes = tuple(sorted({len(clip.frames) for clip in self.clips}))
        return self.options, bool(self.images), shapes


def read_request(body: Any, limits: Limits) -> Ask:
    """Check and decode a request's JSON.

    Raises:
        RefusedError: 400 or 413 with the reason.
    """
    if not isinstance(body, dict):
        raise RefusedError(400, "expected a JSON object")
    if unknown := sorted(body.keys() - _KNOWN):
        raise RefusedError(400, f"unsupported parameter {_shown(unknown[0])}")
    for name, neutral in _NEUTRAL.items():
        value = body.get(name)
        if isinstance(value, bool) or value not in neutral:
            raise RefusedError(400, f"{name}={_shown(value)} is not supported")
    stream, stream_usage = _streaming(body)
    images: list[Image] = []
    clips: list[Clip] = []
    turns = _turns(body.get("messages"), limits)
    left = [limits.fetch_s]  # seconds for fetching; decoding between does not count
    for turn in turns:
        turn["content"] = [_place(part, images, clips, limits, left) for part in turn["content"]]
    return Ask(
        images=tuple(images),
        clips=tuple(clips),
        turns=tuple(turns),
        options=_options(body, limits),
        stream=stream,
        stream_usage=stream_usage,
    )


def _shown(value: Any) -> str:
    """As a reason repeats it: never the whole of what is long or deep."""
    return f"{reprlib.repr(value):.80}"


def _streaming(body: dict[str, Any]) -> tuple[bool, bool]:
    """Whether to stream, and whether with the usage at the end."""
    options = body.get("stream_options")
    options = {} if options is None else options
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise RefusedError(400, "stream_options must be an object with include_usage alone")
    given = {"stream": body.get("stream"), "include_usage": options.get("include_usage")}
    for name, value in given.items():
        if not isinstance(value, bool | None):
            raise RefusedError(400, f"{name} must be true or false, got {_shown(value)}")
    return bool(given["stream"]), bool(given["include_usage"])


def _turns(messages: Any, limits: Limits) -> list[Turn]:
    """Role and content parts of each message, before anything in them is fetched."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise RefusedError(400, "messages must be a list of objects")
    if len(messages) > limits.messages:
        raise RefusedError(413, f"{len(messages)} messages, expected at most {limits.messages}")
    roles = [message.get("role") for message in messages]
    talk = roles[roles[:1] == ["system"] :]
    if not len(talk) % 2 or talk != ["user", "assistant"] * (len(talk) // 2) + ["user"]:
        raise RefusedError(
            400, "expected user and assistant messages in turn, with a user's at the end"
        )
    found = []
    for message in messages:
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise RefusedError(400, "content must be a text or a list of parts")
        kinds = [part.get("type") for part in parts]
        if message["role"] == "system" and any(kind != "text" for kind in kinds):
            raise RefusedError(400, "a system message takes text alone, no pictures and no videos")
        found.append({"role": message["role"], "content": parts})
    count = sum(len(turn["content"]) for turn in found)
    if count > limits.parts:
        raise RefusedError(413, f"{count} content parts, expected at most {limits.parts}")
    texts = [part.get("text") for turn in found for part in turn["content"]]
    length = sum(len(text) for text in texts if isinstance(text, str))
    if length > limits.text:
        raise RefusedError(413, f"text of {length} characters, expected at most {limits.text}")
    return found


def _place(
    part: dict[str, Any], images: list[Image], clips: list[Clip], limits: Limits, left: list[float]
) -> dict[str, str]:
    """A part as the chat template reads it; its picture or clip is added to the given ones."""
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise RefusedError(400, f"text must be a string, got {_shown(part.get('text'))}")
        return {"type": "text", "text": part["text"]}
    if kind not in ("image_url", "video_url"):
        raise RefusedError(
            400, f"content part of type {_shown(kind)}, expected text, image_url, video_url"
        )
    value = part.get(kind)
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise RefusedError(400, f"{kind} must hold a url")
    if len(images) + len(clips) >= limits.media:
        raise RefusedError(413, f"more than {limits.media} pictures and videos")
    used = sum(_pixels(picture) for picture in images) + sum(
        _pixels(frame) for clip in clips for frame in clip.frames
    )
    began = time.monotonic()
    data = fetch(url, limits, began + left[0])
    left[0] -= time.monotonic() - began
    medium = decode(data, limits, limits.pixels - used)
    if isinstance(medium, Clip) != (kind == "video_url"):
        raise RefusedError(400, f"{kind} does not hold what it says")
    if isinstance(medium, Clip):
        clips.append(medium)
        return {"type": "video"}
    images.append(medium)
    return {"type": "image"}


def _pixels(picture: Image) -> int:
    return picture.width * picture.height


def decode(data: bytes, limits: Limits, pixels: int) -> Image | Clip:
    """A picture or a clip from a file's bytes, of at most so many pixels, all frames together.

    Raises:
        RefusedError: neither, damaged, or too large.
    """
    with NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            if is_video(file.name):
                return load_video(
                    file.name,
                    frames=limits.frames,
                    max_pixels=pixels // limits.frames,
                    max_source_pixels=limits.source_pixels,
                    backend="pyav",  # only there the limit holds for what is decoded
                )
            return load_image(file.name, max_pixels=pixels)
        except InputError as error:
            raise RefusedError(400, str(error).replace(f"{file.name}: ", "media: ")) from None


def _options(body: dict[str, Any], limits: Limits) -> tuple[tuple[str, Any], ...]:
    """Options of `generate`; greedy unless a temperature that matters is given."""
    given = (body.get(name) for name in ("max_completion_tokens", "max_tokens"))
    tokens = next((value for value in given if value is not None), 128)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise RefusedError(400, f"max_tokens must be an int of at least 1, got {_shown(tokens)}")
    if tokens > limits.new_tokens:
        most = limits.new_tokens
        raise RefusedError(400, f"max_tokens {_shown(tokens)}, expected at most {most}")
    numbers = {}
    for name, low, high in (("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0)):
        value = body.get(name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise RefusedError(400, f"{name} must be in [{low}, {high}], got {_shown(value)}")
        numbers[name] = float(value)
    options: dict[str, Any] = {"max_new_tokens": tokens}
    if numbers.get("temperature", 0.0) >= _GREEDY_BELOW:
        options |= {"do_sample": True} | numbers
    return tuple(sorted(options.items()))
