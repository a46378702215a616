"""The scripts under examples/, run as they are."""

from __future__ import annotations

import base64
import io
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtok import Pipeline, load
from mmtok.cli.app import main
from mmtok.serving.shards import read_item, read_manifest
from tests.conftest import picture
from tests.videos import write

EXAMPLES = Path(__file__).parents[1] / "examples"
SPEC = "stride(keep=0.25)"


def example(name: str) -> Any:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        picture(number, 90, 90 + number).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def features(photos: Path, tmp_path: Path) -> Path:
    out = tmp_path / "features"
    assert main(["preprocess", str(photos), "--out", str(out), "--reduce", SPEC]) == 0
    return out


@pytest.mark.parametrize("encoder", ["timm:vit_tiny_patch16_224", "open_clip:ViT-B-32"])
def test_vision_pipeline(encoder: str, photos: Path, tmp_path: Path) -> None:
    query = tmp_path / "query.png"
    picture(1, 90, 91).save(query)
    found = example("vision_pipeline").main([str(photos), str(query), "--encoder", encoder])
    assert found[0][0] == "1.png"
    assert found[0][1] == pytest.approx(1, abs=1e-5)
    assert len(found) == 3
    assert found[1][1] < found[0][1]


def test_vision_pipeline_passes_videos_over(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(photos / "clip.mp4", count=3)
    (photos / "bad.png").write_bytes(b"no picture")
    query = str(photos / "1.png")
    options = ["--encoder", "timm:vit_tiny_patch16_224"]
    found = example("vision_pipeline").main([str(photos), query, *options])
    assert {name for name, _ in found} == {"0.png", "1.png", "2.png"}
    assert found[0][0] == "1.png"
    said = capsys.readouterr().err.splitlines()
    assert ["clip.mp4" in line for line in said] == [False, True]
    with pytest.raises(SystemExit, match="no picture among them"):
        example("vision_pipeline").main([str(photos), str(photos / "clip.mp4"), *options])


def test_batch_captions(features: Path, photos: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "captions.jsonl", example("batch_captions").main
    options = ["--text", "how many?", "--max-new-tokens", "4", "--batch", "2"]
    assert run([str(features), str(out), *options]) == 3
    lines = out.read_text().splitlines()
    out.write_text(lines[0] + "\n" + lines[1][:-5])  # stopped within its second line
    assert run([str(features), str(out), *options]) == 2
    assert sorted(out.read_text().splitlines()) == sorted(lines)
    pipe = Pipeline(load("tiny"), SPEC)
    for line in map(json.loads, lines):
        (name,) = line["sources"]
        want = pipe.generate([str(photos / name)], "how many?", max_new_tokens=4)
        assert line["caption"] == want.text


def test_precompute_vllm(features: Path, tmp_path: Path) -> None:
    exported, out = tmp_path / "vllm", tmp_path / "requests.jsonl"
    assert main(["export", str(features), "--to", "vllm", "--out", str(exported)]) == 0
    run = example("precompute_vllm").main
    assert run([str(exported), str(out), "--model", "m", "--text", "what?"]) == 3
    rows = {row["key"]: row for row in read_manifest(features)}
    for body in map(json.loads, out.read_text().splitlines()):
        part, text = body["messages"][0]["content"]
        assert text == {"type": "text", "text": "what?"}
        data = io.BytesIO(base64.b64decode(part["image_embeds"]))
        sent = torch.load(data, weights_only=True)
        want = read_item(features, rows[part["uuid"]])["features"]
        assert torch.equal(sent, want)
