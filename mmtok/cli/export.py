"""`mmtok export`: preprocessed features in the form that a server takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtok.cli import options as opt
from mmtok.cli.output import answer, quiet, say


def export(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that preprocess made.")],
    to: Annotated[
        str, typer.Option("--to", help="vllm, vllm-prompt, vllm-cache, sglang, lmdeploy or hf.")
    ],
    into: Annotated[Path, typer.Option("--out", help="Folder for the payloads.")],
    text: Annotated[str, typer.Option("--text", help="The question, where a prompt is sent.")] = "",
    server_version: Annotated[
        str | None, typer.Option("--server-version", help="Where forms differ, such as 0.4.6.")
    ] = None,
    device: opt.Device = "auto",
    as_json: opt.Json = False,
) -> None:
    """Write preprocessed features in the form that a server takes."""
    quiet()
    from mmtok.serving.export import export as write
    from mmtok.serving.recipe import load_recipe, reload

    recipe = load_recipe(out)
    say(f"loading {recipe.model} ...")
    done = write(out, to, into, reload(recipe, device), text, server_version)
    say(f"{len(done)} items; {into}/index.jsonl")
    if as_json:
        answer({"target": to, "items": len(done), "out": str(into)})
