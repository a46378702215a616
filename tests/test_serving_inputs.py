"""Lists, tables, archives and recipes of unusual kinds."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtok import InputError
from mmtok.serving.recipe import load_recipe
from mmtok.serving.sources import list_sources
from mmtok.serving.stages import decode_item
from mmtok.serving.work import digest, digests, gather
from tests.test_serving import recipe


def test_lists_are_cut_at_line_ends_alone(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "caption": f"a{c}b"} for i, c in enumerate("\u2028\x85\x0c")]
    body = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + body.encode())
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf0.png\r\n1.png\n\n2.png")
    for name in ("a.jsonl", "a.txt"):
        assert [s.name for s in list_sources(tmp_path / name)] == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    "changes",
    [{"frames": "x"}, {"fps": []}, {"schema": 99}, {"model": 5}, {"revision": "random:x"}],
)
def test_a_recipe_of_wrong_types_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    found = json.loads(recipe().canonical()) | changes
    (tmp_path / "run.json").write_text(json.dumps({"recipe": found}))
    with pytest.raises(InputError, match=next(iter(changes))):
        load_recipe(tmp_path)


def test_columns_of_every_kind(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "a.png").write_bytes(b"picture")
    path = tmp_path / "a.parquet"
    paths = pa.array(["a.png", None, ""])
    for column in (paths, paths.dictionary_encode(), paths.cast(pa.string_view())):
        parquet.write_table(pa.table({"image": column}), path)
        found = [digest(source)[1] for source in list_sources(path)]
        assert found[0] is None
        assert all("holds no bytes" in str(error) for error in found[1:])
    parquet.write_table(pa.table({"image": [{"bytes": None, "path": "a.png"}]}), path)
    assert list_sources(path)[0].read() == b"picture"
    for number, data in enumerate((b"old", b"new")):
        parquet.write_table(pa.table({"image": [data]}), path)
        os.utime(path, ns=(number, number))
        assert list_sources(path)[0].read() == data
    parquet.write_table(pa.table({"image": [1, 2]}), path)
    with pytest.raises(InputError, match="column 'image' holds int64"):
        list_sources(path)


def test_hard_links_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.add(tmp_path / name, name)
    found = list_sources(tmp_path / "a.tar")
    assert [(s.name, s.read()) for s in found] == [("a.png", b"picture"), ("b.png", b"picture")]


def test_a_file_that_changes_behind_its_hash_is_no_item_of_it(tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / "a.png")
        if colour == "red":
            sources = list_sources(tmp_path)
            (item,) = gather(sources, digests(sources), recipe())
            assert not isinstance(decode_item(item, recipe())[1], str)
    assert decode_item(item, recipe()) == (item.key, "changed since it was hashed: run again")


def test_a_copy_that_stays_stands_for_one_that_changes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    sources = list_sources(tmp_path)
    (item,) = gather(sources, digests(sources), recipe())
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a.png")
    assert decode_item(item, recipe())[1].getpixel((0, 0)) == (255, 0, 0)
    (tmp_path / "a.png").unlink()
    assert not isinstance(decode_item(item, recipe())[1], str)


def test_a_table_that_is_another_by_now(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": [b"a", b"b"]}), path)
    last = list_sources(path)[-1]
    parquet.write_table(pa.table({"other": [b"a"]}), path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match=r"not there any more|damaged"):
        last.read()
