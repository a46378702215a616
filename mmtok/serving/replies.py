"""Answers in the shape of the OpenAI chat API."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmtok.serving.batching import Answer
from mmtok.serving.chat import Ask

if TYPE_CHECKING:
    from mmtok.pipeline import Pipeline


def whole_reply(pipe: Pipeline, wanted: Ask, answer: Answer) -> dict[str, Any]:
    """A completion in one piece."""
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "logprobs": None}
    return _head(pipe, "chat.completion") | {
        "choices": [choice | {"finish_reason": ended(wanted, answer)}],
        "usage": usage(answer),
    }


def stream_head(pipe: Pipeline) -> dict[str, Any]:
    """What all events of one stream share."""
    return _head(pipe, "chat.completion.chunk")


def event(
    head: dict[str, Any],
    delta: dict[str, Any] | None,
    *,
    ended: str | None = None,
    usage: dict[str, Any] | None = None,
) -> str:
    """One server-sent event: more of the text, why it ended, or, without `delta`, the usage."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ended}
    body = head | {"choices": [] if delta is None else [choice]}
    return f"data: {json.dumps(body if usage is None else body | {'usage': usage})}\n\n"


def stream_tail(head: dict[str, Any], wanted: Ask, answer: Answer, sent: str) -> Iterator[str]:
    """The events behind the text that was `sent`: what it lacks, why it ended, what it cost."""
    if not answer.text.startswith(sent):  # its batch failed half-way, and it was drawn anew
        yield failure("the answer is not what its beginning was: ask again")
        return
    if answer.text != sent:
        yield event(head, {"content": answer.text[len(sent) :]})
    yield event(head, {}, ended=ended(wanted, answer))
    if wanted.stream_usage:
        yield event(head, None, usage=usage(answer))
    yield "data: [DONE]\n\n"


def failure(message: str) -> str:
    """The server-sent event that ends a stream which cannot be finished."""
    return f"data: {json.dumps({'error': {'message': message, 'code': 500}})}\n\n"


def ended(wanted: Ask, answer: Answer) -> str:
    """Why an answer ended."""
    return "length" if answer.new_tokens >= dict(wanted.options)["max_new_tokens"] else "stop"


def usage(answer: Answer) -> dict[str, Any]:
    """Tokens, and under "mmtok" the request's visual tokens and the ledger of its batch."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.new_tokens,
        "total_tokens": answer.prompt_tokens + answer.new_tokens,
        "mmtok": {
            "visual_tokens": dict(zip(("in", "out"), answer.visual_tokens, strict=True)),
            "batch": answer.batch,
            "ledger": answer.ledger.to_dict(),
        },
    }


def _head(pipe: Pipeline, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": pipe.lvlm.name,
    }
