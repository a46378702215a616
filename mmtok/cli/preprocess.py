"""`mmtok preprocess`, `verify`, `export`: media to shards of features, their check, their use."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least
from mmtok.cli.output import answer, quiet, say
from mmtok.errors import InputError

if TYPE_CHECKING:
    pass

Out = Annotated[Path, typer.Option("--out", help="Folder for shards and manifest.")]


def preprocess(
    media: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder, file, .txt, .jsonl, .tar or .parquet.")
    ],
    out: Out,
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    reduce: opt.Reduce = [],  # noqa: B006  # typer copies it
    text: Annotated[str, typer.Option("--text", help="What query-aware reducers read.")] = "",
    frames: opt.Frames = None,
    fps: opt.Fps = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "float16",
    seed: opt.Seed = 0,
    column: Annotated[str, typer.Option("--column", help="Of a Parquet file.")] = "image",
    shard_size: Annotated[int, typer.Option("--shard-size", help="Items of a shard.")] = 64,
    batch: Annotated[int, typer.Option("--batch", help="Pictures encoded at once.")] = 16,
    shards: Annotated[int, typer.Option("--shards", help="Divide the work by so many.")] = 1,
    shard_index: Annotated[int, typer.Option("--shard-index", help="This run's part.")] = 0,
    on_error: Annotated[str, typer.Option("--on-error", help="skip or fail.")] = "skip",
    as_json: opt.Json = False,
) -> None:
    """Encode and prune a collection of images and videos, resumably."""
    for name, value in (("--shard-size", shard_size), ("--batch", batch), ("--shards", shards)):
        at_least(name, value)
    if not 0 <= shard_index < shards:
        raise InputError(f"--shard-index must be below --shards {shards}, got {shard_index}")
    if on_error not in ("skip", "fail"):
        raise InputError(f"--on-error must be skip or fail, got {on_error!r}")
    quiet()
    from mmtok.serving.sources import list_sources

    sources = list_sources(media, column)
    from mmtok import load
    from mmtok.pruning import build
    from mmtok.serving.preprocess import Job
    from mmtok.serving.preprocess import preprocess as run
    from mmtok.serving.recipe import Recipe, check_reducers, fingerprint

    reducers = build(reduce)
    check_reducers(reducers)
    say(f"{len(sources)} items; loading {model} ...")
    lvlm = load(model, dummy=dummy, device=device, seed=seed)
    recipe = Recipe(
        model=model,
        revision=fingerprint(lvlm, dummy=dummy, seed=seed),
        reduce=" + ".join(r.spec for r in reducers) or "none",
        text=text,
        frames=None if fps else frames,
        fps=fps,
        dtype=str(lvlm.dtype).removeprefix("torch.") if dtype == "auto" else dtype,
    )
    job = Job(
        shard_size=shard_size,
        batch_size=batch,
        shards=shards,
        index=shard_index,
        on_error="skip" if on_error == "skip" else "fail",
    )
    made = run(sources, out, lvlm, reducers, recipe, job, _progress())
    for line in made.errors:
        say(f"failed: {line}")
    say(f"{made.done} done, {made.skipped} skipped, {made.failed} failed; {out}/manifest.jsonl")
    if as_json:
        answer(made.to_dict())
    if made.failed:
        raise typer.Exit(3)


def _progress() -> Callable[[int, int], None]:
    """Rate and time to go, on stderr, at most once a second."""
    began, last = time.monotonic(), [0.0]

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] < 1 and done < total:
            return
        last[0] = now
        rate = done / max(now - began, 1e-9)
        say(
            f"{done} of {total}, {rate:.1f} a second, {(total - done) / max(rate, 1e-9):.0f} s left"
        )

    return show


def verify(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that preprocess made.")],
    as_json: opt.Json = False,
) -> None:
    """Check every shard of a preprocessed folder against its manifest."""
    from mmtok.serving.verify import verify as check

    problems = check(out)
    for line in problems:
        say(line)
    say(f"{len(problems)} problems" if problems else "all well")
    if as_json:
        answer({"problems": problems})
    if problems:
        raise typer.Exit(3)


def export(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that preprocess made.")],
    to: Annotated[str, typer.Option("--to", help="vllm, sglang, lmdeploy or hf.")],
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
