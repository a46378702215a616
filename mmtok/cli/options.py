"""Options that several sub-commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MediaFiles = Annotated[
    list[Path], typer.Argument(metavar="MEDIA...", help="Image and video files, one prompt.")
]
Text = Annotated[str, typer.Option("--text", help="The question.")]
Model = Annotated[
    str,
    typer.Option("--model", help="tiny, a folder, a hub id; with --dummy also a configuration."),
]
Dummy = Annotated[bool, typer.Option("--dummy", help="Random weights; nothing is downloaded.")]
Reduce = Annotated[
    list[str], typer.Option("--reduce", help='Such as "todre(keep=0.1)"; may be repeated.')
]
Frames = Annotated[
    int | None, typer.Option("--frames", help="Frames sampled from each video.  [default: 8]")
]
Fps = Annotated[float | None, typer.Option("--fps", help="Or frames sampled per second.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer.")]
Overlay = Annotated[
    Path | None,
    typer.Option("--overlay", help="Write a picture of the kept tokens here (.png, .jpg, .webp)."),
]
NoCount = Annotated[
    bool, typer.Option("--no-count", help="Skip the second pass that counts FLOPs.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, float16 or bfloat16.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the random weights of --dummy.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
CodeFiles = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help=".mmt files; folders of them.")
]
CodesOut = Annotated[
    Path | None,
    typer.Option("--out", help="Folder, or file name for one.  [default: beside each file]"),
]
TokenizerSpec = Annotated[
    str, typer.Option("--tokenizer", help='Such as "patchify(patch=4)"; see `mmtok list`.')
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
