"""What goes where: tables and progress to stderr, the result to stdout."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any


def say(text: str) -> None:
    """Print to stderr: a table, progress, an error."""
    print(text, file=sys.stderr, flush=True)


def answer(value: Mapping[str, Any]) -> None:
    """Print one JSON object as one line to stdout. Call it last."""
    print(json.dumps(value, allow_nan=False), flush=True)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Header and rows as a plain-text table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in rows[0]:
        table.add_column(title, no_wrap=True)
    for row in rows[1:]:
        table.add_row(*(" ".join(cell.split()) for cell in row))
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def quiet() -> None:
    """Keep the libraries' warnings and loading bars off the terminal; downloads still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
