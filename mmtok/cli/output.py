"""What goes where: tables and progress to stderr, the result to stdout."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any


def say(line: str) -> None:
    """Print one line to stderr, whatever is in the names of files it tells of."""
    print(printable(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print lines of mmtok's own to stderr: a table, a traceback."""
    for line in text.split("\n"):
        say(line)


def printable(text: str) -> str:
    """Text in one line, control characters written out: files do not steer the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def spoken(text: str) -> str:
    """A model's answer as people read it: they see where there is none."""
    return text if text.strip() else "(empty)"


def answer(value: Mapping[str, Any]) -> None:
    """Print one JSON object as one line to stdout. Call it last."""
    print(json.dumps(value, allow_nan=False), flush=True)


def quiet() -> None:
    """Keep the libraries' warnings and loading bars off the terminal; downloads still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
