"""What a folder of features survives: odd names, lost and damaged files, late sources."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmtok import InputError
from mmtok.cli.output import answer, say
from mmtok.serving.export import export
from mmtok.serving.recipe import fingerprint
from mmtok.serving.shards import read_manifest
from mmtok.serving.verify import verify
from tests.conftest import pictures
from tests.test_serving import run, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures."""
    return pictures(tmp_path / "in", 4)


def test_names_that_are_no_unicode(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One readable, one not: both have a row, can be printed and are verified."""
    shutil.copy(folder / "0.png", os.fsencode(folder) + b"/\xff.png")
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.png"))).write_bytes(b"")
    made = run(folder, tmp_path / "out")
    assert (made.done, made.failed) == (4, 1)
    names = {name for row in read_manifest(tmp_path / "out") for name in row["sources"]}
    assert all(name in names for name in ("\udcff.png", "\udcfe.png"))
    assert verify(tmp_path / "out") == []
    (line,) = made.errors
    say(line)
    answer(made.to_dict())
    assert "\\udcfe.png" in capfd.readouterr().out


def edited(rows: list[dict[str, Any]], **changes: Any) -> str:
    """Rows as a file, the first one of them changed; None takes a field out."""
    first = {k: v for k, v in (rows[0] | changes).items() if changes.get(k, v) is not None}
    return "".join(json.dumps(row) + "\n" for row in [first, *rows[1:]])


def test_verify_names_damaged_and_forged_rows(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    manifest = out / "manifest.jsonl"
    text, rows = manifest.read_text(), read_manifest(out)
    assert verify(out) == []
    for missing in ("tensors_sha256", "tokens_out", "shard", "key", "sources"):
        manifest.write_text(edited(rows, **{missing: None}))
        assert any(f"line 1: damaged (no {missing})" in line for line in verify(out))
    for changes in ({"tokens_in": 7}, {"counts": [3]}):
        manifest.write_text(edited(rows, **changes))
        assert "line 1: damaged (no counts that fit" in verify(out)[0]
    forged: list[dict[str, Any]] = [{"sha256": "0" * 64}, {"sources": ["x"]}]
    for changes in forged:
        manifest.write_text(edited(rows, **changes))
        (problem,) = verify(out)
        assert "not the one of its shard" in problem
    manifest.write_text("".join(json.dumps(row | {"status": "error"}) + "\n" for row in rows))
    assert len(verify(out)) == 4
    manifest.write_bytes(b"\xff\xfe" + text.encode())
    assert "damaged" in verify(out)[0]
    manifest.write_text(text)
    shard = sorted((out / "shards").glob("*.jsonl"))[0]
    whole = shard.read_text()
    shard.write_text(whole[:50])
    (problem,) = verify(out)
    assert f"{shard}, line 1: damaged" in problem
    with pytest.raises(InputError, match="line 1: damaged"):
        run(folder, out)
    shard.write_text(whole)
    (out / "run.json").unlink()
    (problem,) = verify(out)
    assert "run.json: cannot be read" in problem


@pytest.mark.parametrize("size", [3, 2])
def test_a_lost_shard_is_made_again(folder: Path, tmp_path: Path, size: int) -> None:
    """Even if it is cut in another way than before."""
    want = run(folder, tmp_path / "out").content_hash
    lost = sorted((tmp_path / "out" / "shards").glob("*.safetensors"))[0]
    lost.unlink()
    assert any("gone" in line for line in verify(tmp_path / "out"))
    made = run(folder, tmp_path / "out", shard_size=size)
    assert made.done + made.skipped == 4
    assert made.done > 0
    assert size != 3 or made.content_hash == want
    assert verify(tmp_path / "out") == []


def test_a_copy_that_comes_later_is_in_the_manifest(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "0.png", other / "copy.png")
    assert run(other, out).skipped == 1
    run(folder, out)
    named = sorted(row["sources"] for row in read_manifest(out))
    assert named == [["0.png", "copy.png"], ["1.png"], ["2.png"], ["3.png"]]
    assert verify(out) == []


def test_an_export_into_a_file_is_refused(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out")
    with pytest.raises(InputError, match="not a folder this can write to"):
        export(tmp_path / "out", "hf", folder / "0.png", tiny("llava"))


def test_another_chat_template_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "chat_template.jinja").write_text("a")
    before = fingerprint(str(tmp_path), None, dummy=False, seed=0)
    (tmp_path / "chat_template.jinja").write_text("b")
    assert fingerprint(str(tmp_path), None, dummy=False, seed=0) != before
