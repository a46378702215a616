"""`mmtok run`: media in, an answer and the ledger out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least, check_budget, check_files, read_media
from mmtok.cli.output import answer, quiet, say


def run(
    media: opt.MediaFiles,
    text: opt.Text,
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    reduce: opt.Reduce = [],  # noqa: B006  # typer copies it
    frames: opt.Frames = None,
    fps: opt.Fps = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 32,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    overlay: Annotated[
        Path | None, typer.Option(help="Write a picture of the kept tokens here (.png, .jpg).")
    ] = None,
    seed: opt.Seed = 0,
    no_count: Annotated[
        bool, typer.Option("--no-count", help="Skip the second pass that counts FLOPs.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Answer a question, and account for every stage."""
    at_least("--max-new-tokens", max_new_tokens)
    check_files(media)
    from mmtok.io.overlay import check_picture_path, save_picture

    if overlay is not None:
        check_picture_path(overlay)
    quiet()
    from mmtok import Pipeline, load
    from mmtok.accounting.timing import StageTimer
    from mmtok.models.weights import pick_device
    from mmtok.pruning import build
    from mmtok.views import draw, views

    reducers = build(reduce)
    timer = StageTimer(pick_device(device), cpu_peak=True)
    with timer.stage("source"):
        images, clips = read_media(media, frames, fps)
    say(f"loading {model} ...")
    lvlm = load(model, dummy=dummy, device=device, dtype=dtype, seed=seed)
    pipe = Pipeline(lvlm, reducers)
    shots = [clip.frames for clip in clips]
    with timer.stage("source"):
        inputs = lvlm.inputs_batch([(images, shots, text)], fps=fps or 2.0)
    result = pipe.run(inputs, timer=timer, count=not no_count, max_new_tokens=max_new_tokens)
    check_budget(result.reduction)
    if overlay is not None:
        save_picture(draw(views(lvlm, result, images, shots)), overlay)
        say(f"wrote {overlay}")
    say(f"\n{result.ledger.table()}")
    if not as_json:
        print(result.text)
        return
    answer(
        {
            "text": result.text,
            "model": model,
            "reduce": pipe.spec,
            "media": [str(path) for path in media],
            "overlay": None if overlay is None else str(overlay),
            "ledger": result.ledger.to_dict(),
        }
    )
