"""Media from remote URLs: internal addresses, redirects and sizes."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from typing import Any

import pytest

from mmtok.serving.fetch import fetch, public_address
from mmtok.serving.limits import Limits, RefusedError


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "[fd00::1]",
        "224.0.0.1",
    ],
)
def test_internal_addresses_are_never_fetched(host: str) -> None:
    with pytest.raises(RefusedError, match=r"not a public address|unknown"):
        fetch(f"http://{host}:9/a.png", Limits(remote=True))


def test_a_name_with_one_internal_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [(0, 0, 0, "", ("93.184.216.34", 80)), (0, 0, 0, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: mixed)
    with pytest.raises(RefusedError, match="not a public address"):
        public_address("example.com", 80)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: mixed[:1])
    assert public_address("example.com", 80) == "93.184.216.34"


def test_redirects_are_not_followed_and_sizes_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "/big")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * (100 if self.path == "/small?q=1" else 5000))

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("mmtok.serving.fetch.public_address", lambda host, port: "127.0.0.1")
    base, limits = f"http://example.com:{server.server_port}", Limits(remote=True, media_bytes=999)
    try:
        assert fetch(f"{base}/small?q=1", limits) == b"x" * 100
        with pytest.raises(RefusedError, match="answered 302"):
            fetch(f"{base}/away", limits)
        with pytest.raises(RefusedError, match="above 999 bytes"):
            fetch(f"{base}/big", limits)
    finally:
        server.shutdown()


def test_a_look_up_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        asked.wait(20)
        return [(0, 0, 0, "", ("93.184.216.34", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    began = time.monotonic()
    with pytest.raises(RefusedError, match=r"took longer than 0\.2 s"):
        fetch("http://example.com/a.png", Limits(remote=True, fetch_s=0.2))
    asked.set()
    assert time.monotonic() - began < 5


def test_connecting_takes_no_longer_than_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        given.append(timeout)
        raise TimeoutError

    monkeypatch.setattr("mmtok.serving.fetch.public_address", lambda host, port: "127.0.0.1")
    monkeypatch.setattr(socket, "create_connection", connect)
    for left in (2.0, 60.0):
        with pytest.raises(RefusedError, match="cannot be fetched"):
            fetch("http://example.com/a.png", Limits(remote=True, fetch_s=left))
    assert 1 < given[0] <= 2
    assert given[1] == 10


@pytest.mark.parametrize("scheme", ["data", "DATA"])
def test_no_part_of_a_data_url_is_kept(scheme: str) -> None:
    tracemalloc.start()
    try:
        for number in range(3):
            assert fetch(f"{scheme}:x/{number};base64,{'A' * 2**20}", Limits()) == bytes(3 * 2**18)
        assert tracemalloc.get_traced_memory()[0] < 2**19
    finally:
        tracemalloc.stop()


def test_a_long_url_is_refused() -> None:
    with pytest.raises(RefusedError, match="above 8192 characters"):
        fetch("http://example.com/" + "a" * 8192, Limits(remote=True))
