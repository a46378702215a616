"""What a server accepts, and the errors it answers with."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from mmtok.errors import InputError
from mmtok.io.video import DEFAULT_FRAMES
from mmtok.options import check_types

_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one request and of all of them together, each of them above 0.

    Attributes:
        body_bytes: of a whole request.
        body_s: how long a request's body may take to come in.
        send_s: how long a client may keep the server waiting, all events of a stream together.
        media_bytes: of one picture or video, decoded from base64 or fetched.
        messages: of one request.
        parts: of all its messages together.
        media: pictures and videos in one request.
        pixels: of all pictures and sampled frames of one request together.
        frames: sampled from one video.
        source_pixels: of all frames of one video, sampled or not; one of less than 2^16 counts as
            that. The way to a sampled frame leads through those before it.
        new_tokens: of one answer.
        text: characters of all its messages together.
        waiting: requests that may be in work or wait for it.
        media_root: folder below which `file://` paths may be read; None: none.
        remote: whether http(s) URLs are fetched, from public addresses and without redirects.
        fetch_s: how long all fetches of one request may take together, name look-ups included.

    Raises:
        InputError: a bound is not above 0, or a time above a day.
    """

    body_bytes: int = 32 * 2**20
    body_s: float = 60.0
    send_s: float = 60.0
    media_bytes: int = 24 * 2**20
    messages: int = 256
    parts: int = 256
    media: int = 16
    pixels: int = 2**24
    frames: int = DEFAULT_FRAMES
    source_pixels: int = 2**34
    new_tokens: int = 1024
    text: int = 20_000
    waiting: int = 256
    media_root: Path | None = None
    remote: bool = False
    fetch_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse bounds that nothing could keep."""
        check_types("limits", self)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise InputError(f"{field.name} must be above 0, got {value}")
            if field.name.endswith("_s") and value > _DAY_S:
                raise InputError(f"{field.name} must be at most {_DAY_S} (a day), got {value}")


class RefusedError(Exception):
    """A request that is answered with an HTTP status and a reason.

    Args:
        status: HTTP status code.
        reason: one line for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason
