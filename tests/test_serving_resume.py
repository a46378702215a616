"""What a second run into the same folder does with what the first one left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from mmtok import InputError
from mmtok.cli.app import main
from mmtok.serving import formats, stages
from mmtok.serving.export import export
from mmtok.serving.recipe import Recipe
from mmtok.serving.shards import read_manifest
from mmtok.serving.sources import Source
from mmtok.serving.verify import leftovers, verify
from tests.conftest import picture
from tests.test_serving import run, tiny


def lose(out: Path) -> Path:
    """Delete the first shard's tensors."""
    lost = sorted((out / "shards").glob("*.safetensors"))[0]
    lost.unlink()
    return lost


def test_a_run_that_does_not_make_a_lost_shard_again_leaves_its_rows(
    folder: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    want = run(folder, out)
    lost = lose(out)
    other.mkdir()
    shutil.copy(folder / "0.png", other / "new.png")
    picture(9, 60, 48).save(other / "9.png")
    run(other, out)
    run(folder, out, shards=4, index=3)
    assert len(read_manifest(out)) == 7
    (problem,) = verify(out)
    assert problem.startswith(f"{lost.name}: gone")
    (other / "9.png").unlink()
    made = run(folder, out)
    assert (made.done, made.failed) == (3, 0)
    assert verify(out) == []
    assert want.content_hash == run(folder, tmp_path / "again").content_hash


def test_a_lost_shard_is_made_again_where_a_bad_file_of_it_was_deleted(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (folder / "bad.png").write_bytes(b"\x89PNG nothing")
    run(folder, out, shard_size=9)
    lose(out)
    (folder / "bad.png").unlink()
    assert run(folder, out, shard_size=9).done == 6
    assert len(read_manifest(out)) == 7  # what failed is not forgotten
    assert verify(out) == []


def test_failed_items_are_tried_again_when_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want, out = run(folder, tmp_path / "want", batch_size=1), tmp_path / "out"

    def flaky(source: Source, recipe: Recipe) -> Any:
        if source.name in ("3.png", "5.png"):
            raise InputError(f"{source.name}: decoding needs PyAV")
        return decode(source, recipe)

    decode = stages.decode
    monkeypatch.setattr(stages, "decode", flaky)
    assert run(folder, out, batch_size=1).failed == 2
    again = run(folder, out, batch_size=1, retry_failed=True)
    assert (again.done, again.failed, len(again.errors)) == (0, 2, 2)
    monkeypatch.undo()
    assert run(folder, out, batch_size=1).failed == 2
    made = run(folder, out, batch_size=1, retry_failed=True)
    assert (made.done, made.skipped, made.failed) == (2, 4, 0)
    assert made.content_hash == want.content_hash
    assert run(folder, out, batch_size=1, retry_failed=True).skipped == 6
    assert verify(out) == []
    for path in sorted((out / "shards").glob("*.safetensors")):
        path.unlink()
        assert run(folder, out, batch_size=1).content_hash == want.content_hash
        assert verify(out) == []


def test_failures_of_files_that_were_replaced_are_dropped(folder: Path, tmp_path: Path) -> None:
    """One that could not be read at all, one whose bytes were no picture, one that still is."""
    out = tmp_path / "out"
    bad = {"empty.png": b"", "cut.png": b"\x89PNG nothing", "still.png": b"\x89PNG neither"}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    assert run(folder, out, batch_size=1).failed == 3
    for number, name in enumerate(("empty.png", "cut.png")):
        picture(20 + number, 50, 50).save(folder / name)
    made = run(folder, out, batch_size=1)
    assert (made.done, made.failed) == (2, 1)
    assert made.content_hash == run(folder, tmp_path / "fresh", batch_size=1).content_hash
    assert len(read_manifest(out)) == 9
    assert verify(out) == []


def test_retry_failed_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.png").write_bytes(b"\x89PNG nothing")
    command = ["preprocess", str(folder), "--out", str(tmp_path / "out")]
    assert main(command) == main(command) == 3
    assert "0 done, 7 skipped, 1 failed" in capsys.readouterr().err
    assert main([*command, "--retry-failed"]) == 3
    assert "0 done, 6 skipped, 1 failed" in capsys.readouterr().err


@pytest.mark.parametrize("left", [b"", b"\x08", None])
def test_a_damaged_shard_is_one_line_and_can_be_made_again(
    folder: Path, tmp_path: Path, left: bytes | None
) -> None:
    out = tmp_path / "out"
    want = run(folder, out)
    shard = sorted((out / "shards").glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-9] if left is None else left)
    (problem,) = verify(out)
    assert problem.startswith(f"{shard}: damaged (")
    assert problem.endswith("delete it and run the same `mmtok preprocess` again")
    shard.unlink()
    assert run(folder, out).content_hash == want.content_hash
    assert verify(out) == []


def test_damaged_rows_can_be_made_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    want = run(folder, out)
    for path in (sorted((out / "shards").glob("*.jsonl"))[0], out / "manifest.jsonl"):
        path.write_text("{")
        (problem,) = verify(out)
        assert problem.endswith("delete it and run the same `mmtok preprocess` again")
        path.unlink()
        assert run(folder, out).content_hash == want.content_hash
        assert verify(out) == []


def test_what_a_killed_run_left_is_no_problem(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between a shard's tensors and its rows, then cut in another way."""
    out = tmp_path / "out"
    run(folder, out)
    rows = sorted((out / "shards").glob("*.jsonl"))[0]
    rows.unlink()
    run(folder, out, shard_size=2)
    assert verify(out) == []
    stray = rows.with_suffix(".safetensors").name
    assert leftovers(out) == [stray]
    assert main(["verify", str(out)]) == 0
    assert f"shards/{stray}: left over, may be deleted" in capsys.readouterr().err
    (out / "shards" / stray).unlink()
    assert verify(out) == leftovers(out) == []


def test_verify_and_export_read_each_shard_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, tmp_path / "out")
    opened = []
    read = formats.read

    def counted(path: Path, keys: Collection[str]) -> Any:
        opened.append(path)
        return read(path, keys)

    monkeypatch.setattr(formats, "read", counted)
    assert verify(tmp_path / "out") == []
    assert len(opened) == 2
    uuids = export(tmp_path / "out", "hf", tmp_path / "hf", tiny("llava"))
    assert len(opened) == 4
    lines = (tmp_path / "hf" / "index.jsonl").read_text().splitlines()
    assert uuids == [json.loads(line)["uuid"] for line in lines] == sorted(uuids)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("counts", [5]),
        ("kept_counts", None),
        ("size", [10**6, 10**6]),
        ("size", "x"),
        ("grids", [[1]]),
        ("clip", {"x": 1}),
        ("stacked", 3),
        ("tokens_out", True),
    ],
)
def test_a_manifest_with_impossible_facts(
    folder: Path, tmp_path: Path, name: str, value: Any
) -> None:
    out = tmp_path / "out"
    run(folder, out)
    rows = [row | {name: value} for row in read_manifest(out)]
    (out / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=f"line 1: damaged .no .*{name}"):
        export(out, "hf", tmp_path / "hf", tiny("llava"))


def test_a_manifest_that_keeps_more_than_there_was(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path)
    more = {"kept_counts": [999], "tokens_out": 999}
    rows = [row | more for row in read_manifest(tmp_path)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"line 1: damaged .more tokens kept than there were"):
        read_manifest(tmp_path)
