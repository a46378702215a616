"""What a folder of features survives: odd names, lost and damaged files, sources that come later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mmtok.cli.output import answer, say
from mmtok.serving.shards import read_manifest
from mmtok.serving.verify import verify
from tests.conftest import picture
from tests.test_serving import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures."""
    made = tmp_path / "in"
    made.mkdir()
    for number in range(4):
        picture(number, 60, 48).save(made / f"{number}.png")
    return made


def test_names_that_are_no_unicode(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One readable, one not: both have a row, can be printed and are verified."""
    shutil.copy(folder / "0.png", os.fsencode(folder) + b"/\xff.png")
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.png"))).write_bytes(b"")
    made = run(folder, tmp_path / "out")
    assert (made.done, made.failed) == (4, 1)
    names = {name for row in read_manifest(tmp_path / "out") for name in row["sources"]}
    assert {"\udcff.png"} <= names
    assert verify(tmp_path / "out") == []
    (line,) = made.errors
    say(line)
    answer(made.to_dict())
    assert "\\udcfe.png" in capfd.readouterr().out
