"""`mmtok serve`: an OpenAI-compatible chat endpoint."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least
from mmtok.cli.output import quiet, say
from mmtok.errors import InputError
from mmtok.io.files import reason

_MediaRoot = Annotated[
    Path | None, typer.Option("--media-root", help="Folder that file:// URLs may name.")
]
_Remote = Annotated[bool, typer.Option("--remote-urls", help="Fetch http(s) URLs of public hosts.")]


def serve(
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    reduce: opt.Reduce = [],  # noqa: B006  # typer copies it
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port, 0 for any.")] = 8000,
    batch: Annotated[int, typer.Option("--batch", help="Most requests answered together.")] = 8,
    media_root: _MediaRoot = None,
    remote: _Remote = False,
    max_body: Annotated[int, typer.Option("--max-body-mib", help="Of one request.")] = 32,
    pixels: Annotated[int, typer.Option(help="Of all pictures and frames of a request.")] = 2**24,
    media: Annotated[int, typer.Option(help="Pictures and videos of a request.")] = 16,
    new_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 1024,
    fetch_s: Annotated[float, typer.Option(help="For all URLs of a request.")] = 60.0,
    waiting: Annotated[int, typer.Option(help="Requests in work or waiting for it.")] = 256,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    seed: opt.Seed = 0,
) -> None:
    """Serve chat completions; the API key is read from MMTOK_API_KEY, if that is set."""
    at_least("--batch", batch)
    at_least("--max-body-mib", max_body)
    if media_root is not None and not os.path.isdir(media_root):
        raise InputError(f"--media-root {media_root}: no such folder")
    quiet()
    uvicorn, create_app = _server()
    from mmtok import Pipeline, load
    from mmtok.serving.limits import Limits

    limits = Limits(
        body_bytes=max_body * 2**20,
        media_bytes=max_body * 2**20 * 3 // 4,
        pixels=pixels,
        media=media,
        new_tokens=new_tokens,
        fetch_s=fetch_s,
        waiting=waiting,
        media_root=media_root,
        remote=remote,
    )
    with _listen(host, port) as listening:
        say(f"loading {model} ...")
        lvlm = load(model, dummy=dummy, device=device, dtype=dtype, seed=seed)
        pipe, key = Pipeline(lvlm, list(reduce)), os.environ.get("MMTOK_API_KEY")
        app = create_app(pipe, limits=limits, api_key=key, batch=batch)
        _run(uvicorn, app, listening)


def _listen(host: str, port: int) -> socket.socket:
    """The socket, before the model is loaded: requests that come meanwhile wait.

    Raises:
        InputError: no port, one that is taken, or a host that is not this machine's.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"--port must be from 0 to 65535, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot listen on --host {host} --port {port}: {reason(error)}") from None


def _run(uvicorn: Any, app: Any, listening: socket.socket) -> None:
    host, port = listening.getsockname()[:2]
    say(f"serving at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30)
    with suppress(KeyboardInterrupt):  # the way to end it
        uvicorn.Server(config).run(sockets=[listening])


def _server() -> tuple[Any, Any]:
    """uvicorn and the application it runs.

    Raises:
        InputError: the packages of the server are not installed.
    """
    try:
        import uvicorn

        from mmtok.serving.server import create_app
    except ImportError as error:
        raise InputError(f"serving needs {error.name}: pip install 'mmtok[serve]'") from None
    return uvicorn, create_app
