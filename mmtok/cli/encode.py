"""`mmtok encode`: media files to .mmt files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import at_least
from mmtok.cli.items import Job, enough_memory, finish, make_room, plan_jobs, run_all
from mmtok.cli.output import answer, say

# What is taken from a folder; files named by themselves may be called anything.
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "video": (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"),
    "audio": (".wav", ".flac"),
}


def encode(
    media: Annotated[
        list[Path],
        typer.Argument(metavar="MEDIA...", help="Image, video and sound files; folders of them."),
    ],
    tokenizer: opt.TokenizerSpec,
    out: opt.CodesOut = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Keep the first so many tokens of each.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", help="Frames taken of each video.  [default: all]")
    ] = None,
    fps: opt.Fps = None,
    device: opt.Device = "auto",
    overwrite: opt.Overwrite = False,
    as_json: opt.Json = False,
) -> None:
    """Turn media into codes: name.png becomes name.png.mmt."""
    if max_tokens is not None:
        at_least("--max-tokens", max_tokens)
    from mmtok.models.weights import pick_device
    from mmtok.tokenizers import build

    made = build(tokenizer)
    suffixes = [suffix for kind in made.modalities for suffix in SUFFIXES[kind]]
    jobs = plan_jobs(media, suffixes, out, [".mmt"], lambda name: f"{name}.mmt")
    with enough_memory(f"{tokenizer}: memory does not suffice for this tokenizer"):
        made.to(pick_device(device))
    say(f"{made.spec}: {made.codebook.bits:.2f} bits a token")

    def work(job: Job) -> dict[str, Any]:
        return _encode_file(made, job, max_tokens, frames, fps, overwrite)

    done, failed = run_all(jobs, lambda job: job.source, work)
    say(f"{len(done)} encoded, {len(failed)} failed")
    if as_json:
        hashed = {"tokenizer": made.spec, "tokenizer_hash": made.tokenizer_hash}
        answer({"items": done, "failed": failed, **hashed})
    finish(done, failed)


def _encode_file(
    tokenizer: Any,
    job: Job,
    max_tokens: int | None,
    frames: int | None,
    fps: float | None,
    overwrite: bool,
) -> dict[str, Any]:
    from mmtok.io.media import load_media
    from mmtok.io.mmt import write_codes
    from mmtok.io.mmt_header import check_length

    make_room(job.target, job.source, overwrite)
    item, meta = load_media(
        job.source,
        kinds=tokenizer.modalities,
        frames=frames,
        fps=fps,
        sample_rate=tokenizer.sample_rate,
        channels=tokenizer.channels,
    )
    if max_tokens is not None:  # what could not be written is not encoded
        check_length(tuple(item.shape), max_tokens)
    codes = tokenizer.encode([item], max_tokens=max_tokens)
    size = write_codes(replace(codes, meta=meta | codes.meta), job.target)
    say(f"{job.target}: {codes.counts[0]} tokens, {size} bytes")
    return {
        "path": str(job.source),
        "tokens": codes.counts[0],
        "bits": codes.bits,
        "bytes": size,
        "out": str(job.target),
        "grid": list(codes.grids[0]),
    }
