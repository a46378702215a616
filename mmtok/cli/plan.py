"""`mmtok plan`: what a model would cost with and without a reducer, from its configuration."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from mmtok.cli import options as opt
from mmtok.cli.checks import check_keep
from mmtok.cli.output import answer, quiet, show
from mmtok.errors import InputError


def plan(
    model: Annotated[
        str, typer.Argument(help="A shipped configuration such as llava-1.5-7b, or a config.json.")
    ],
    reduce: opt.Reduce = [],  # noqa: B006  # typer copies it
    text_tokens: Annotated[int, typer.Option(help="Tokens that are not visual.")] = 64,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="HEIGHTxWIDTH", help="Of pictures and frames, such as 336x336."),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Plan one clip of so many frames.")] = None,
    images: Annotated[int | None, typer.Option(help="How many pictures.  [default: 1]")] = None,
    new_tokens: Annotated[int, typer.Option(help="Length of the answer.")] = 1,
    dtype: Annotated[str, typer.Option(help="Of the KV cache.")] = "float16",
    as_json: opt.Json = False,
) -> None:
    """Plan FLOPs and KV bytes without any weights."""
    size = _size(image_size)
    quiet()
    from mmtok import plan as make_plan
    from mmtok.pruning import build

    reducers = build(reduce)
    made = make_plan(
        model,
        reduce=reducers,
        text_tokens=text_tokens,
        image_size=size,
        frames=frames,
        images=images,
        dtype=dtype,
        new_tokens=new_tokens,
    )
    check_keep(reducers, made.meta["largest_item"])
    show(made.table())
    if as_json:
        answer(made.to_dict())


def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) of "336x448".

    Raises:
        InputError: it reads differently.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    if found is None:
        raise InputError(f"--image-size must be HEIGHTxWIDTH such as 336x336, got {text!r}")
    return int(found[1]), int(found[2])
