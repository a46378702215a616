"""The head of a results page: what made it, where and when."""

from __future__ import annotations

import datetime
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from mmtok.profile import machine

ROOT = Path(__file__).parent.parent


def card(title: str) -> str:
    """Markdown lines: title, command, commit, machine and date."""
    device = torch.device("cuda" if "cuda" in sys.argv else "cpu")
    script = str(Path(sys.argv[0]).resolve().relative_to(ROOT))
    words = ["python", script, *map(_short, sys.argv[1:])]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    place = ", ".join(f"{k} {v}" for k, v in machine(device).items())
    load = os.getloadavg()[0]
    return (
        f"# {title}\n\n"
        f"- command: `{shlex.join(words)}`\n"
        f"- commit: {commit or 'unknown'}\n"
        f"- machine: {place}; load {load:.1f} at the end\n"
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC\n\n"
    )


def _short(word: str) -> str:
    """A word of the command; of a path on this machine its name alone."""
    return Path(word).name if word.startswith("/") else word


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| --- |" + " ---: |" * (len(rows[0]) - 1))
    return "\n".join(lines) + "\n"


def save(name: str, text: str) -> None:
    """Write docs/results/<name> and print it."""
    path = ROOT / "docs" / "results" / name
    path.write_text(text, encoding="utf-8")
    print(text)
