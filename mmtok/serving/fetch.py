"""Bytes of a medium that a client names: a data URL, a file below the allowed root, a public URL.

A remote host's name is resolved once, every address of it must be public, and the connection goes
to that very address, so that no second look-up can lead elsewhere. Redirects are not followed.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from mmtok.serving.limits import Limits, RefusedError

TIMEOUT_S = 10.0
"""Longest silence of a remote host."""
MAX_URL = 8192
"""Most characters of a URL that holds no data."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# All IPv6 addresses that are given out, and what is kept for documentation among them, which
# Python's own tables may not know yet.
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")
_DOCUMENTATION = ipaddress.IPv6Network("3fff::/20")


def fetch(url: str, limits: Limits, until: float | None = None) -> bytes:
    """The bytes behind a URL.

    Args:
        url: data, file, http or https.
        limits: what is allowed.
        until: when, on the monotonic clock, a remote host is given up: one that drips is not
            silent. None: in `limits.fetch_s`.

    Raises:
        RefusedError: malformed, not allowed, not there, or too large.
    """
    if url[:5].lower() == "data:":  # before urlsplit, which keeps what it has seen
        return _data(url, limits)
    if len(url) > MAX_URL:
        raise RefusedError(400, f"media URL above {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RefusedError(400, "malformed media URL") from None
    if parts.scheme == "file":
        return _local(parts, limits)
    if parts.scheme in ("http", "https"):
        if not limits.remote:
            raise RefusedError(400, "remote URLs are off: send the media as a data URL")
        end = time.monotonic() + limits.fetch_s if until is None else until
        return _remote(parts, port, limits, end)
    raise RefusedError(400, "expected a data: URL" + (", or http(s)" if limits.remote else ""))


def _data(url: str, limits: Limits) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise RefusedError(400, "a data URL must be base64: data:image/png;base64,...")
    if len(body) * 3 // 4 > limits.media_bytes:
        raise RefusedError(413, f"media above {limits.media_bytes} bytes")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(400, "the data URL's base64 is damaged") from None


def _local(parts: SplitResult, limits: Limits) -> bytes:
    if limits.media_root is None or parts.netloc not in ("", "localhost"):
        raise RefusedError(400, "file URLs are off: send the media as a data URL")
    try:
        root = limits.media_root.resolve(strict=True)
        file = Path(unquote(parts.path)).resolve(strict=True)
        if not file.is_relative_to(root) or not file.is_file():
            raise OSError
        if file.stat().st_size > limits.media_bytes:
            raise RefusedError(413, f"media above {limits.media_bytes} bytes")
        return file.read_bytes()
    except (OSError, ValueError):  # one answer for all: nobody learns what lies outside the root
        raise RefusedError(400, "no such file below the allowed folder") from None


def _remote(parts: SplitResult, port: int | None, limits: Limits, until: float) -> bytes:
    host = parts.hostname
    if not host or parts.username or parts.password:
        raise RefusedError(400, "malformed media URL")
    secure = parts.scheme == "https"
    port = port or (443 if secure else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    late = RefusedError(400, f"the media URLs took longer than {limits.fetch_s:g} s")
    address = _in_time(lambda: public_address(host, port), until)
    left = until - time.monotonic()
    if address is None or left <= 0:
        raise late
    connection = _Pinned(host, port, address, secure, min(TIMEOUT_S, left))
    deadline = threading.Timer(left, connection.stop)
    deadline.start()
    try:
        connection.request("GET", target, headers={"User-Agent": "mmtok", "Accept": "*/*"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RefusedError(400, f"the media URL answered {answer.status}, expected 200")
        body = answer.read(limits.media_bytes + 1)
    except (OSError, http.client.HTTPException, ValueError):
        if connection.stopped or time.monotonic() >= until:
            raise late from None
        raise RefusedError(400, "the media URL cannot be fetched") from None
    finally:
        deadline.cancel()
        connection.close()
    if connection.stopped:
        raise late
    if len(body) > limits.media_bytes:
        raise RefusedError(413, f"media above {limits.media_bytes} bytes")
    return body


def _in_time(look_up: Callable[[], str], until: float) -> str | None:
    """What a look-up gives, None if it takes too long.

    Nothing ends a look-up of the system's resolver: its thread is left behind until that gives up.
    """
    future: Future[str] = Future()

    def work() -> None:
        try:
            future.set_result(look_up())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, name="mmtok-look-up", daemon=True).start()
    done, _ = wait([future], max(until - time.monotonic(), 0))
    return future.result() if done else None


def public_address(host: str, port: int) -> str:
    """The address to connect to.

    Raises:
        RefusedError: unknown host, or one of its addresses is not public.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RefusedError(400, "the media URL's host is unknown") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        if not all(map(_is_public, _meant(address))):
            raise RefusedError(400, "the media URL's host is not a public address")
    return str(addresses[0])


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _is_public(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (
        address not in _GIVEN_OUT or address in _DOCUMENTATION
    ):
        return False
    return address.is_global and not address.is_multicast


def _meant(address: _Address) -> list[_Address]:
    """Where an address leads: the IPv4 one inside it (mapped, 6to4, Teredo, NAT64), or itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [found for found in inner if found is not None] or [address]


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, with the host's name in its headers and certificate check."""

    def __init__(self, host: str, port: int, address: str, secure: bool, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._address, self._secure, self.stopped = address, secure, False
        self._open: socket.socket | None = None  # `sock` is gone once an answer will close it

    def connect(self) -> None:
        """Open the socket to the address that was checked."""
        self.sock = self._open = socket.create_connection((self._address, self.port), self.timeout)
        wrapped: ssl.SSLSocket | None = None
        if self._secure:
            context = ssl.create_default_context()
            wrapped = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock = self._open = (
                wrapped  # before the handshake, so that `stop` can end that too
            )
        if self.stopped:
            raise TimeoutError
        if wrapped is not None:
            wrapped.do_handshake()

    def stop(self) -> None:
        """End whatever waits for the other side, from another thread."""
        self.stopped = True
        if self._open is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)
