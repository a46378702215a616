"""Turns of a conversation, as chat templates read them, with places for pictures and clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmtok.errors import InputError

Turn = dict[str, Any]
"""{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]}: the parts are
image, video and text; images and videos stand for the given ones in their order."""

_ROLES = ("system", "user", "assistant")


def as_turns(text: str | Sequence[Turn], images: int, clips: int) -> list[Turn]:
    """A question behind its images and clips as one user turn; turns as they are, once checked.

    Raises:
        InputError: turns that a chat template cannot read, or with other numbers of places than
            there are images and clips; text that is no valid Unicode.
    """
    if isinstance(text, str):
        media: list[dict[str, str]] = [{"type": "image"}] * images + [{"type": "video"}] * clips
        turns: list[Turn] = [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]
    else:
        turns = [_checked(turn) for turn in text] if isinstance(text, list | tuple) else []
        if not turns:
            raise InputError(f"expected a question or a list of turns, got {text!r:.80}")
    parts: list[dict[str, str]] = [part for turn in turns for part in turn["content"]]
    kinds = [part["type"] for part in parts]
    if (kinds.count("image"), kinds.count("video")) != (images, clips):
        raise InputError(
            f"the turns have places for {kinds.count('image')} images and {kinds.count('video')} "
            f"videos, got {images} and {clips}"
        )
    for said in (part["text"] for part in parts if part["type"] == "text"):
        if said.encode("utf-8", "ignore").decode() != said:
            raise InputError(f"the text {said[:40]!r} is not valid Unicode")
    return turns


def _checked(turn: Any) -> Turn:
    fits = isinstance(turn, dict) and turn.get("role") in _ROLES
    content = turn.get("content") if fits else None
    if isinstance(content, list) and all(map(_is_part, content)):
        return _one_text(turn) if turn["role"] == "system" else dict(turn)
    raise InputError(
        f"a turn must have a role of {', '.join(_ROLES)} and a list of image, video and text parts "
        f"as content, got {turn!r:.80}"
    )


def _one_text(turn: Turn) -> Turn:
    """A system turn with its texts as one: some chat templates read the first part alone."""
    if any(part["type"] != "text" for part in turn["content"]):
        raise InputError("a system turn takes text alone, got a place for an image or a video")
    text = "".join(part["text"] for part in turn["content"])
    return {**turn, "content": [{"type": "text", "text": text}]}


def _is_part(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind in ("image", "video") or (kind == "text" and isinstance(part.get("text"), str))


def frames_as_images(
    turns: list[Turn], images: Iterable[Any], clips: Iterable[Sequence[Any]]
) -> tuple[list[Turn], list[Any]]:
    """The turns with every clip's place as places of its frames, and all pictures in their order.

    Args:
        turns: from `as_turns`.
        images: pictures.
        clips: the frames of each clip.
    """
    own, others = iter(images), iter(clips)
    made, pictures = [], list[Any]()
    for turn in turns:
        content: list[dict[str, Any]] = []
        for part in turn["content"]:
            if part["type"] == "text":
                content.append(part)
                continue
            found = [next(own)] if part["type"] == "image" else list(next(others))
            content += [{"type": "image"}] * len(found)
            pictures += found
        made.append({**turn, "content": content})
    return made, pictures
