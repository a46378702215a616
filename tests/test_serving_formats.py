"""Shards in every format, and a job planned before it runs."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from mmtok import InputError
from mmtok.cli.app import main
from mmtok.io.image import image_size, load_image
from mmtok.pruning import build
from mmtok.serving.formats import FORMATS
from mmtok.serving.preprocess import preprocess
from mmtok.serving.shards import read_item, read_manifest
from mmtok.serving.sources import list_sources
from mmtok.serving.verify import verify
from mmtok.serving.work import Job, Summary
from tests.conftest import picture
from tests.test_serving import recipe, tiny
from tests.videos import write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    for number in range(3):
        picture(number, 70 + number, 80).save(made / f"{number}.png")
    (made / "bad.png").write_bytes(b"\x89PNG nothing")
    return made


def run(folder: Path, out: Path, form: str, dtype: str = "bfloat16") -> Summary:
    lvlm, spec = tiny("qwen3_vl"), "random(keep=0.3)"  # its tokens carry deepstack features
    job = Job(shard_size=2, batch_size=2, format=form)
    wanted = recipe(spec, dtype=dtype)
    return preprocess(list_sources(folder), out, lvlm, build(spec), wanted, job)


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_every_format_gives_back_the_same_tensors(form: str, folder: Path, tmp_path: Path) -> None:
    want, got = run(folder, tmp_path / "want", "safetensors"), run(folder, tmp_path / "got", form)
    assert got.content_hash == want.content_hash
    assert verify(tmp_path / "got") == []
    files = list((tmp_path / "got" / "shards").glob(f"*.{form}"))
    assert len(files) == 2
    for row in read_manifest(tmp_path / "got"):
        if row["status"] == "ok":
            assert read_item(tmp_path / "got", row)["deepstack.0"].dtype == torch.bfloat16
    again = run(folder, tmp_path / "again", form)
    assert again.content_hash == want.content_hash
    for file in files:  # no times, no owners: the same bytes
        assert file.read_bytes() == (tmp_path / "again" / "shards" / file.name).read_bytes()


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_damage_is_found_in_every_format(form: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, out, form)
    first, second = sorted((out / "shards").glob(f"*.{form}"))
    whole = first.read_bytes()
    features = next(
        bytes(read_item(out, row)["features"].view(torch.uint8).numpy().tobytes())
        for row in read_manifest(out)
        if row.get("shard") == first.name
    )
    place = whole.index(features)
    first.write_bytes(whole[:place] + bytes([features[0] ^ 1]) + whole[place + 1 :])
    second.write_bytes(second.read_bytes()[:100])
    found = verify(out)
    assert len(found) == 2
    assert sum("not what was written" in line for line in found) == 1
    assert all("damaged (" in x and x.endswith("preprocess` again") for x in found)
    for path in (first, second):
        path.unlink()
    run(folder, out, form)
    assert verify(out) == []


def test_a_tar_is_a_webdataset(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out", "tar")
    names = []
    for path in (tmp_path / "out" / "shards").glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                names.append(member.name)
                data = archive.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".json"):
                    assert json.loads(data)["key"] == member.name.removesuffix(".json")
                else:
                    assert "features" in load(data)
    keys = [name.partition(".")[0] for name in names]
    assert [keys.count(key) for key in dict.fromkeys(keys)] == [2, 2, 2]


def test_features_that_do_not_fit_the_type_are_an_error(folder: Path, tmp_path: Path) -> None:
    lvlm = tiny("llava")
    head = lvlm.model.get_submodule("model.multi_modal_projector.linear_2").bias
    before = head.clone()
    head += 1e6
    try:
        job, spec = Job(), "stride(keep=4)"
        made = preprocess(
            list_sources(folder),
            tmp_path / "out",
            lvlm,
            build(spec),
            recipe(spec, dtype="float16"),
            job,
        )
    finally:
        head.copy_(before)
    assert (made.done, made.failed) == (0, 4)
    assert any("NaN or infinity as float16" in line for line in made.errors)


def last(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_dry_run_says_what_the_run_will_write(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "clip.mp4", count=9)
    out = tmp_path / "out"
    command = ["preprocess", str(folder), "--out", str(out), "--model", "qwen3_vl", "--dummy"]
    command += ["--reduce", "random(keep=0.3)", "--frames", "4", "--dtype", "float16", "--json"]
    assert main([*command, "--dry-run"]) == 3  # the bad one is known from its header
    plan = last(capsys)
    assert not out.exists()
    assert main(command) == 3
    made = last(capsys)
    assert (plan["items"], plan["failed"]) == (made["done"], made["failed"]) == (4, 1)
    rows = [row for row in read_manifest(out) if row["status"] == "ok"]
    assert plan["tokens_in"] == sum(row["tokens_in"] for row in rows)
    assert plan["tokens_out"] == sum(row["tokens_out"] for row in rows)
    tensors = [x for row in rows for x in read_item(out, row).values()]
    assert plan["bytes"] == sum(x.numel() * x.element_size() for x in tensors)
    assert plan["flops"] > 0


@pytest.mark.parametrize(("batch", "more", "timed"), [(1, 0, 3), (1, 6, 4), (16, 6, 8)])
def test_a_dry_run_can_measure_the_time(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    batch: int,
    more: int,
    timed: int,
) -> None:
    """On some that are spread over the folder, after others that warm up."""
    for number in range(more):
        picture(number, 90, 80).save(folder / f"more {number}.png")
    out = tmp_path / "out"
    command = ["preprocess", str(folder), "--out", str(out), "--batch", str(batch), "--json"]
    assert main([*command, "--dry-run", "--measure"]) == 3
    said = capsys.readouterr()
    plan = json.loads(said.out.splitlines()[-1])
    assert not out.exists()
    assert plan["measured_items"] == timed
    assert 0 < plan["estimated_seconds"] < 60
    assert f"estimated {plan['estimated_seconds']:.1f} s for {4 + more} items" in said.err


def test_the_size_of_a_turned_picture_is_that_of_the_upright_one(tmp_path: Path) -> None:
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = tmp_path / "a.jpg"
        picture(1, 40, 20).save(file, exif=exif)
        assert image_size(file) == load_image(file).size
    file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(InputError, match="truncated"):
        image_size(file)
