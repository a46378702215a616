"""Preprocessing: nothing lost, nothing twice, the same however divided, and back into the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtok import InputError
from mmtok.models.lvlm import LVLM
from mmtok.pruning import build
from mmtok.serving import shards, stages
from mmtok.serving.preprocess import preprocess
from mmtok.serving.recipe import Recipe, check_reducers
from mmtok.serving.shards import read_manifest
from mmtok.serving.sources import list_sources
from mmtok.serving.verify import verify
from mmtok.serving.work import Job, Summary
from tests.conftest import picture, tiny_model

SPEC = "random(keep=0.3)"


def recipe(spec: str = SPEC, **changes: Any) -> Recipe:
    fields = {"model": "m", "revision": "r", "text": "", "frames": None, "fps": None}
    fields["dtype"] = "float32"
    return Recipe(reduce=spec, **(fields | changes))


def tiny(family: str) -> LVLM:
    model, processor = tiny_model(family)
    return LVLM(model=model, processor=processor, name=family, config=model.config)


def run(folder: Path, out: Path, spec: str = SPEC, family: str = "llava", **job: Any) -> Summary:
    made = Job(**({"shard_size": 3, "batch_size": 2} | job))
    return preprocess(list_sources(folder), out, tiny(family), build(spec), recipe(spec), made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures, one of them twice, a broken one and one that is no picture."""
    made = tmp_path / "in"
    (made / "sub dir").mkdir(parents=True)
    for number in range(7):
        picture(number, 60 + 9 * number, 80).save(made / "sub dir" / f"é {number}.png")
    shutil.copy(made / "sub dir" / "é 3.png", made / "again.png")
    whole = (made / "again.png").read_bytes()
    (made / "cut.png").write_bytes(whole[: len(whole) // 2])
    (made / "words.jpg").write_text("no picture")
    (made / "notes.txt").write_text("left alone")
    return made


def test_every_item_has_one_row_and_bad_ones_say_why(folder: Path, tmp_path: Path) -> None:
    made = run(folder, tmp_path / "out")
    assert (made.done, made.failed, made.skipped, made.shards) == (7, 2, 0, 3)
    rows = read_manifest(tmp_path / "out")
    assert len({row["key"] for row in rows}) == len(rows) == 9
    (twice,) = (row for row in rows if len(row["sources"]) == 2)
    assert sorted(twice["sources"]) == ["again.png", "sub dir/é 3.png"]
    bad = {row["sources"][0]: row["error"] for row in rows if row["status"] == "error"}
    assert set(bad) == {"cut.png", "words.jpg"}
    assert "truncated" in bad["cut.png"]
    assert verify(tmp_path / "out") == []


def test_resumed_and_divided_runs_give_the_same(folder: Path, tmp_path: Path) -> None:
    whole = run(folder, tmp_path / "whole")
    again = run(folder, tmp_path / "whole")
    assert (again.done, again.skipped, again.shards) == (0, 9, 0)
    assert again.content_hash == whole.content_hash
    for index in (1, 0):
        run(folder, tmp_path / "parts", shards=2, index=index)
    torn = tmp_path / "torn"
    shutil.copytree(tmp_path / "whole", torn)
    rows = sorted((torn / "shards").glob("*.jsonl"))
    rows[0].unlink()  # killed between the tensors and the rows of one shard ...
    (torn / "shards" / ".other.safetensors.123").write_bytes(b"half")  # ... and within another
    (torn / "manifest.jsonl").unlink()
    assert run(folder, torn).shards == 1
    shutil.copytree(folder, tmp_path / "moved" / "elsewhere")
    run(tmp_path / "moved", tmp_path / "other")
    tensors = {}
    for name in ("whole", "parts", "torn", "other"):
        out = tmp_path / name
        tensors[name] = {p.name: p.read_bytes() for p in (out / "shards").glob("*.safetensors")}
        assert verify(out) == []
    assert tensors["whole"] == tensors["parts"] == tensors["torn"] == tensors["other"]


def test_another_recipe_is_refused(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out")
    with pytest.raises(InputError, match="another recipe"):
        run(folder, tmp_path / "out", "random(keep=0.4)")
    assert recipe().key("a") != recipe(text="x").key("a") != recipe(text="x").key("b")


def test_an_error_can_end_the_run_and_loses_no_shard(folder: Path, tmp_path: Path) -> None:
    for name in ("cut.png", "words.jpg"):
        (folder / name).unlink()
    good = sorted(recipe().key(source.digest()) for source in list_sources(folder))
    for number in range(1000):  # one whose key puts it into the last of three shards
        (folder / "bad.png").write_bytes(b"\x89PNG nothing %d" % number)
        (bad,) = (s for s in list_sources(folder) if s.name == "bad.png")
        if recipe().key(bad.digest()) > good[-1]:
            break
    with pytest.raises(InputError, match=r"bad\.png"):
        run(folder, tmp_path / "out", on_error="fail")
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    made = run(folder, tmp_path / "out")
    assert (made.skipped, made.done, made.failed) == (6, 1, 1)


def test_a_mended_file_is_no_failure_any_more(folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "out").failed == 2
    for name in ("cut.png", "words.jpg"):
        picture(len(name), 50, 50).save(folder / name)
    made = run(folder, tmp_path / "out")
    assert (made.done, made.failed) == (2, 0)


def test_a_shard_that_comes_while_the_manifest_is_written_is_in_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    want = run(folder, out).content_hash
    late = sorted((out / "shards").glob("*.jsonl"))[0]
    text = late.read_text()
    late.unlink()
    read = shards.shard_rows

    def slow(folder: Path) -> list[dict[str, Any]]:
        rows = list(read(folder))
        late.write_text(text)  # another worker's
        return rows

    monkeypatch.setattr(shards, "shard_rows", slow)
    assert shards.write_manifest(out)[0] == want
    assert len(read_manifest(out)) == 9


def test_one_refused_picture_costs_its_batch_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor refuses one size, a reducer another: both say so, the others are encoded."""
    inputs, encode = stages.model_inputs, stages.encode_batch

    def picky(lvlm: LVLM, media: Any, recipe: Recipe) -> Any:
        if any(m.width == 69 for m in media):
            raise InputError("69 is not for me")
        return inputs(lvlm, media, recipe)

    def choosy(lvlm: LVLM, reduction: Any, media: Any, made: Any, recipe: Recipe) -> Any:
        if any(m.width == 78 for m in media):
            raise InputError("nor is 78")
        return encode(lvlm, reduction, media, made, recipe)

    want = run(folder, tmp_path / "want", batch_size=1)
    monkeypatch.setattr(stages, "model_inputs", picky)
    monkeypatch.setattr(stages, "encode_batch", choosy)
    made = run(folder, tmp_path / "out", shard_size=9, batch_size=9)
    assert (want.done, made.done, made.failed) == (7, 5, 4)
    assert sum("69 is not for me" in line or "nor is 78" in line for line in made.errors) == 2


def test_verify_finds_damage(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out)
    files = sorted((out / "shards").glob("*.safetensors"))
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    files[0].write_bytes(data)
    files[1].unlink()
    found = "\n".join(verify(out))
    assert "not what was written" in found
    assert "gone, with the tensors" in found
    with pytest.raises(InputError, match="not found"):
        verify(tmp_path)


def test_methods_that_act_later_are_refused() -> None:
    check_reducers(build(["todre(keep=0.1)"]))
    with pytest.raises(InputError, match="fastv acts inside the language model"):
        check_reducers(build("fastv(keep=0.5)"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.jsonl", '{"image": "a.png"}\n{"picture": "b"}\n', "line 2: expected a JSON object"),
        ("list.jsonl", '{"image": 3}\n', "line 1"),
        ("list.xyz", "x", "cannot tell what this is"),
        ("list.txt", "\n", "no images or videos"),
        ("list.tar", "not a tar", "not a complete uncompressed tar"),
        ("list.parquet", "not parquet", "pyarrow|not a Parquet file"),
    ],
)
def test_bad_lists(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        list_sources(tmp_path / name)


def test_lists_and_archives_give_what_the_folder_gives(folder: Path, tmp_path: Path) -> None:
    import tarfile

    want = {source.digest() for source in list_sources(folder)}
    files = [str(source.path) for source in list_sources(folder)]
    (tmp_path / "a.txt").write_text("\n".join(files))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"image": f}) for f in files))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, "data")
    for name in ("a.txt", "a.jsonl", "a.tar"):
        assert {source.digest() for source in list_sources(tmp_path / name)} == want
    image = next(s for s in list_sources(tmp_path / "a.tar") if "again" in s.name)
    with image.file() as file:
        assert Image.open(file).size == (87, 80)
