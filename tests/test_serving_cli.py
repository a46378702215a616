"""preprocess, verify and export as a user runs them, killed runs included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmtok.cli.app import main
from tests.conftest import pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = pictures(tmp_path / "in", 40, 64)
    (made / "bad.png").write_bytes(b"\x89PNG nothing")
    return made


def options(folder: Path, out: Path) -> list[str]:
    spec = ["--reduce", "stride(keep=0.1)", "--shard-size", "4", "--batch", "2", "--json"]
    return ["preprocess", str(folder), "--out", str(out), *spec]


def last(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_killed_run_goes_on_where_it_was(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(options(folder, whole)) == 3
    want = last(capsys)
    assert (want["done"], want["failed"], want["shards"]) == (40, 1, 11)
    command = [sys.executable, "-m", "mmtok", *options(folder, killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(killed.glob("shards/*.jsonl"))) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert main(options(folder, killed)) == 3
    got = last(capsys)
    assert got["content_hash"] == want["content_hash"]
    assert 0 < got["skipped"] < 41  # type: ignore[operator]
    for path in (whole / "shards").glob("*.safetensors"):
        assert path.read_bytes() == (killed / "shards" / path.name).read_bytes()
    assert main(["verify", str(killed), "--json"]) == 0
    assert last(capsys)["problems"] == []
    hf = tmp_path / "hf"
    assert main(["export", str(killed), "--to", "hf", "--out", str(hf), "--text", "what?"]) == 0
    assert len((hf / "index.jsonl").read_text().splitlines()) == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preprocess", "nowhere", "--out", "x"], "no such file"),
        (["preprocess", ".", "--out", "x"], "no images or videos"),
        (
            ["preprocess", ".", "--out", "x", "--shards", "2", "--shard-index", "2"],
            "below --shards",
        ),
        (["preprocess", ".", "--out", "x", "--on-error", "stop"], "skip or fail"),
        (["preprocess", ".", "--out", "x", "--format", "zip"], "one of safetensors, tar"),
        (["preprocess", ".", "--out", "x", "--frames", "2", "--fps", "1"], "not both"),
        (["preprocess", ".", "--out", "x", "--dtype", "int8"], "--dtype must be"),
        (["preprocess", ".", "--out", "x", "--engine", "spark"], "threads or ray"),
        (["preprocess", ".", "--out", "x", "--engine", "ray"], "needs --dtype"),
        (["preprocess", ".", "--out", "x", "--frames", "0"], "frames=0: expected at least 1"),
        (["preprocess", ".", "--out", "x", "--fps", "0"], "fps=0.0: expected a positive"),
        (["serve", "--port", "0"], "MMTOK_API_KEY unset"),
        (["serve", "--pixels", "0"], "pixels must be above 0, got 0"),
        (["serve", "--fetch-s", "nan"], "fetch_s must be a finite number, got nan"),
        (["serve", "--waiting", "-1"], "waiting must be above 0, got -1"),
        (["serve", "--port", "70000"], "--port must be from 0 to 65535"),
        (["serve", "--media-root", "x" * 300], "no such folder"),
        (["preprocess", ".", "--out", "x", "--measure"], "--measure goes with --dry-run"),
        (["verify", "."], "not found"),
        (["export", ".", "--to", "hf", "--out", "x"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMTOK_API_KEY", "")
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []
