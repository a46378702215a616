"""`mmtok serve` from its socket to Ctrl-C."""

from __future__ import annotations

import json
import socket
import threading
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
import uvicorn

from mmtok.cli.app import main


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "no.such.host.invalid", "x" * 64, "192.0.2.1", "::2"]
)
def test_where_it_cannot_listen_no_model_is_loaded(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtok.load", lambda *a, **k: pytest.fail("the model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--host", host, "--port", port]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: cannot listen on --host {host} --port {port}: ")


def test_it_says_where_it_listens_and_ends_by_ctrl_c(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = uvicorn.Server.run

    def run(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        thread = threading.Thread(target=real, args=(self, sockets))
        thread.start()
        url = urlsplit(capsys.readouterr().err.split()[-1])
        connection = HTTPConnection(str(url.hostname), url.port, timeout=60)
        connection.request("GET", f"{url.path}/models")
        assert json.load(connection.getresponse())["object"] == "list"
        connection.close()
        self.should_exit = True
        thread.join(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.delenv("MMTOK_API_KEY", raising=False)
    assert main(["serve", "--port", "0"]) == 0
