"""`mmtok run`: media in, an answer and the ledger out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least, check_budget, check_files, read_media
from mmtok.cli.items import enough_memory
from mmtok.cli.output import answer, quiet, say, show, spoken
from mmtok.io.files import refuse_input

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmtok.models.lvlm import LVLM
    from mmtok.pipeline import Result


def run(
    media: opt.MediaFiles,
    text: opt.Text,
    model: opt.Model = "tiny",
    dummy: opt.Dummy = False,
    reduce: opt.Reduce = [],  # noqa: B006  # typer copies it
    frames: opt.Frames = None,
    fps: opt.Fps = None,
    max_new_tokens: opt.MaxNewTokens = 32,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    overlay: opt.Overlay = None,
    seed: opt.Seed = 0,
    no_count: opt.NoCount = False,
    as_json: opt.Json = False,
) -> None:
    """Answer a question, and account for every stage."""
    _check(media, max_new_tokens, overlay)
    quiet()
    from mmtok import Pipeline, load
    from mmtok.accounting.timing import StageTimer
    from mmtok.models.outside import usable
    from mmtok.models.weights import pick_device
    from mmtok.pruning import build

    reducers = build(reduce)
    timer = StageTimer(pick_device(device), cpu_peak=True)
    with timer.stage("source"):
        images, clips = read_media(media, frames, fps)
    say(f"loading {model} ...")
    with (
        enough_memory(f"{model}: memory does not suffice for this model"),
        usable(model if dummy else None),
    ):
        lvlm = load(model, dummy=dummy, device=device, dtype=dtype, seed=seed)
        pipe = Pipeline(lvlm, reducers)
        with timer.stage("source"):
            inputs = lvlm.inputs_batch([(images, clips, text)])
        result = pipe.run(inputs, timer=timer, count=not no_count, max_new_tokens=max_new_tokens)
    shots = [clip.frames for clip in clips]
    check_budget(result.reduction)
    if overlay is not None:
        _draw(lvlm, result, images, shots, overlay)
    _report(result, media, overlay, as_json)


def _check(media: Sequence[Path], max_new_tokens: int, overlay: Path | None) -> None:
    """What can be told before anything slow is imported."""
    at_least("--max-new-tokens", max_new_tokens)
    check_files(media)
    if overlay is not None:
        from mmtok.io.overlay import check_picture_path

        check_picture_path(overlay)
        refuse_input(overlay, media)


def _draw(
    lvlm: LVLM,
    result: Result,
    images: Sequence[Image],
    clips: Sequence[Sequence[Image]],
    overlay: Path,
) -> None:
    from mmtok.io.overlay import save_picture
    from mmtok.views import draw, views

    save_picture(draw(views(lvlm, result, images, clips)), overlay)
    say(f"wrote {overlay}")


def _report(result: Result, media: Sequence[Path], overlay: Path | None, as_json: bool) -> None:
    show(f"\n{result.ledger.table()}")
    if not as_json:
        print(spoken(result.text))
        return
    answer(
        {
            "text": result.text,
            "model": result.ledger.meta["model"],
            "reduce": result.ledger.meta["reduce"],
            "media": [str(path) for path in media],
            "overlay": None if overlay is None else str(overlay),
            "ledger": result.ledger.to_dict(),
        }
    )
