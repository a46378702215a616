"""Folders and files of every wrong kind: one line each, and no more than that."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mmtok import InputError
from mmtok.cli.app import main
from mmtok.serving import shards
from mmtok.serving.export import export
from mmtok.serving.recipe import load_recipe
from mmtok.serving.resume import done_keys
from mmtok.serving.shards import read_manifest, row_files
from mmtok.serving.sources import list_sources
from mmtok.serving.verify import verify
from mmtok.serving.work import digests
from tests.test_serving import run, tiny


def rows_of(out: Path) -> list[dict[str, Any]]:
    """What all rows beside the shards say."""
    return [json.loads(line) for path in row_files(out) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("inside", ["index.jsonl", "{key:.32}.safetensors"])
def test_an_export_onto_a_folder_is_refused(folder: Path, tmp_path: Path, inside: str) -> None:
    out, into = tmp_path / "out", tmp_path / "hf"
    run(folder, out)
    (into / inside.format(key=read_manifest(out)[0]["key"])).mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"):
        export(out, "hf", into, tiny("llava"))
    assert [path for path in into.iterdir() if path.name.startswith(".")] == []


def test_an_export_from_the_command_line_onto_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, into = tmp_path / "out", tmp_path / "hf"
    assert main(["preprocess", str(folder), "--out", str(out)]) == 0
    (into / "index.jsonl").mkdir(parents=True)
    assert main(["export", str(out), "--to", "hf", "--out", str(into)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: {into}/index.jsonl: cannot be written (Is a directory)"


RECIPES = {
    "a list": b"[]",
    "no recipe": b"{}",
    "another kind": b'{"recipe": []}',
    "no keys": b'{"recipe": {"model": "m"}}',
    "a number": b'{"recipe": {"model": 1, "revision": "r", "reduce": "none", "text": "", '
    b'"frames": null, "fps": null, "dtype": "float32"}}',
    "deep": b"[" * 100_000,
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("content", RECIPES.values(), ids=RECIPES)
def test_a_damaged_recipe_is_one_line_wherever_it_is_read(
    folder: Path, tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "out"
    run(folder, out)
    (out / "run.json").write_bytes(content)
    for read in (lambda: load_recipe(out), lambda: run(folder, out)):
        with pytest.raises(InputError, match=r"run\.json: cannot be read .*, expected what"):
            read()
    (problem,) = verify(out)
    assert "run.json: cannot be read" in problem


def test_a_manifest_that_is_a_folder(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out")
    (tmp_path / "out" / "manifest.jsonl").unlink()
    (tmp_path / "out" / "manifest.jsonl").mkdir()
    with pytest.raises(InputError, match=r"manifest\.jsonl: not found"):
        verify(tmp_path / "out")
    with pytest.raises(InputError, match=r"manifest\.jsonl: cannot be written"):
        run(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["x" * 300, "\0", "\udcff", "..", ""])
def test_a_shard_of_an_impossible_name(folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    want = run(folder, out)
    for path in [out / "manifest.jsonl", row_files(out)[0]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[0]["shard"] = name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert any(
        line.startswith(f"{name}: gone, with the tensors of 1 item;") for line in verify(out)
    )
    made = run(folder, out)
    assert made.done == 3
    assert made.content_hash == want.content_hash
    assert verify(out) == []


def test_a_list_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError, match="line 1: expected a JSON object"):
        list_sources(tmp_path / "a.jsonl")


def test_a_table_whose_pages_are_damaged(tmp_path: Path) -> None:
    """Its footer can be read, one row group cannot: an error of those items alone."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    rows = [os.urandom(500) for _ in range(4)]
    parquet.write_table(pa.table({"image": rows}), path, row_group_size=2)
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(data)
    found = digests(list_sources(path))
    assert [error is None for _, error in found] == [False, False, True, True]
    assert "row group 0 is damaged" in str(found[0][1])


def test_a_failed_item_is_named_once(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(b"\x89PNG nothing")
    (line,) = run(folder, tmp_path / "out").errors
    assert line.count("bad.png") == 1


def test_verify_says_one_line_for_one_file_that_is_gone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    lost = sorted((out / "shards").glob("*.safetensors"))[0]
    lost.unlink()
    assert verify(out) == [
        f"{lost.name}: gone, with the tensors of 3 items; run the same `mmtok preprocess` again"
    ]
    lines = lost.with_suffix(".jsonl")
    text = lines.read_text()
    lines.unlink()
    (problem,) = verify(out)
    assert "tensors of 3 items" in problem
    lines.write_text(text)
    run(folder, out)
    lines.unlink()
    assert verify(out) == [
        f"{lost.name}: the rows of 3 items are gone; run the same `mmtok preprocess` again"
    ]


def test_rows_of_a_lost_shard_go_before_it_is_made_again(folder: Path, tmp_path: Path) -> None:
    """Cut in another way, and with its old file back: still one row for each item."""
    out = tmp_path / "out"
    run(folder, out)
    lost = sorted((out / "shards").glob("*.safetensors"))[0]
    kept = lost.read_bytes()
    lost.unlink()
    run(folder, out, shard_size=2)
    lost.write_bytes(kept)
    keys = [row["key"] for row in rows_of(out)]
    assert len(keys) == len(set(keys)) == 6
    assert len(read_manifest(out)) == 6


def test_rows_that_another_worker_takes_away_are_no_damage(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(folder, out)
    listed = row_files(out)
    listed[0].unlink()
    monkeypatch.setattr(shards, "row_files", lambda folder: listed)
    assert len(done_keys(out, [], set())) == 3


def test_names_that_another_worker_adds_are_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest comes, with one more shard, while this worker writes its own."""
    out = tmp_path / "out"
    run(folder, out)
    rows = read_manifest(out)
    key, late = rows[0]["key"], row_files(out)[-1]
    text = late.read_text()
    late.unlink()
    read = shards.shard_rows

    def slow(folder: Path) -> list[Any]:
        found = list(read(folder))
        if not late.exists():
            late.write_text(text)
            named = [rows[0] | {"sources": ["a copy.png", *rows[0]["sources"]]}, *rows[1:]]
            body = "".join(json.dumps(row) + "\n" for row in named)
            other.append(body)
        return found

    other: list[str] = []
    replace = os.replace

    def replaced(path: Path, to: Path) -> Path:
        replace(path, to)
        if other and Path(to).name == "manifest.jsonl":
            Path(to).write_text(other.pop())
        return Path(to)

    monkeypatch.setattr(shards, "shard_rows", slow)
    monkeypatch.setattr(Path, "replace", replaced)
    shards.write_manifest(out, {key: ["zz.png", "b.png"]})
    found = {row["key"]: row["sources"] for row in read_manifest(out)}
    assert found[key] == sorted(["a copy.png", "b.png", "zz.png", *rows[0]["sources"]])
