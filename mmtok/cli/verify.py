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
    from mmtok.serving.verify import leftovers
    from mmtok.serving.verify import verify as check

    problems, left = check(out), leftovers(out)
    for line in problems:
        say(line)
    for name in left:
        say(f"shards/{name}: left over, may be deleted while no run is going on")
    say(f"problems: {len(problems)}" if problems else "all well")
    if as_json:
        answer({"problems": problems, "leftovers": left})
    if problems:
        raise typer.Exit(3)
