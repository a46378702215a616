"""`mmtok verify`: every shard of a preprocessed folder against its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtok.cli import options as opt
from mmtok.cli.output import answer, say


def verify(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that preprocess made.")],
    as_json: opt.Json = False,
) -> None:
    """Check every shard of a preprocessed folder against its manifest."""
    from mmtok.serving.verify import verify as check

    problems = check(out)
    for line in problems:
        say(line)
    say(f"problems: {len(problems)}" if problems else "all well")
    if as_json:
        answer({"problems": problems})
    if problems:
        raise typer.Exit(3)
