"""`mmtok profile`: what a reducer really saves, beside what its FLOPs promise."""

from __future__ import annotations

from typing import Annotated

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least, check_budget, check_files, read_media
from mmtok.cli.output import answer, quiet, say, show


def profile(
    media: opt.MediaFiles,
    text: opt.Text,
    reduce: opt.Reduce,
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    frames: opt.Frames = None,
    fps: opt.Fps = None,
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 10,
    warmup: Annotated[int, typer.Option(help="Rounds before that.")] = 2,
    new_tokens: Annotated[int, typer.Option(help="Tokens both sides generate.")] = 8,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    seed: opt.Seed = 0,
    as_json: opt.Json = False,
) -> None:
    """Time a reducer against the baseline."""
    at_least("--repeats", repeats)
    at_least("--warmup", warmup, 0)
    at_least("--new-tokens", new_tokens)
    check_files(media)
    quiet()
    from mmtok import load
    from mmtok.models.weights import pick_device
    from mmtok.profile import profile as measure
    from mmtok.pruning import build

    reducers = build(reduce)
    pick_device(device)
    images, clips = read_media(media, frames, fps)
    say(f"loading {model} ...")
    lvlm = load(model, dummy=dummy, device=device, dtype=dtype, seed=seed)
    inputs = lvlm.inputs(images, text, clips)
    say(f"{warmup} + {repeats} rounds of baseline and reduced ...")
    made = measure(
        lvlm,
        reducers,
        inputs,
        repeats=repeats,
        warmup=warmup,
        new_tokens=new_tokens,
        check=check_budget,
    )
    show(made.table())
    if as_json:
        answer(made.to_dict() | {"model": model})
