"""`mmtok serve`: an OpenAI-compatible chat endpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least
from mmtok.cli.output import quiet, say
from mmtok.errors import InputError


def serve(
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    reduce: opt.Reduce = [],  # noqa: B006  # typer copies it
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.")] = 8000,
    batch: Annotated[int, typer.Option("--batch", help="Most requests answered together.")] = 8,
    media_root: Annotated[
        Path | None, typer.Option("--media-root", help="Folder that file:// URLs may name.")
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote-urls", help="Fetch http(s) URLs of public hosts.")
    ] = False,
    max_body: Annotated[int, typer.Option("--max-body-mib", help="Of one request.")] = 32,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    seed: opt.Seed = 0,
) -> None:
    """Serve chat completions; the API key is read from MMTOK_API_KEY, if that is set."""
    at_least("--batch", batch)
    at_least("--max-body-mib", max_body)
    if media_root is not None and not media_root.is_dir():
        raise InputError(f"--media-root {media_root}: no such folder")
    api_key = _api_key()
    quiet()
    try:
        import uvicorn

        from mmtok.serving.server import create_app
    except ImportError as error:
        raise InputError(f"serving needs {error.name}: pip install 'mmtok[serve]'") from None
    from mmtok import Pipeline, load
    from mmtok.serving.limits import Limits

    say(f"loading {model} ...")
    pipe = Pipeline(load(model, dummy=dummy, device=device, dtype=dtype, seed=seed), list(reduce))
    limits = Limits(
        body_bytes=max_body * 2**20,
        media_bytes=max_body * 2**20 * 3 // 4,
        media_root=media_root,
        remote=remote,
    )
    app = create_app(pipe, limits=limits, api_key=api_key, batch=batch)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=30)


def _api_key() -> str | None:
    """The key that clients must send.

    Raises:
        InputError: it is set and empty, which a client without any would match.
    """
    key = os.environ.get("MMTOK_API_KEY")
    if key == "":
        raise InputError("MMTOK_API_KEY is empty: expected a key, or the variable unset")
    return key
