"""One odd value in a user's configuration, a folder or a budget: one clear line, nothing left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtok.cli.app import main
from mmtok.models.dummy import tiny_config
from mmtok.models.outside import said, usable


def changed(name: str, field: str, value: Any) -> str:
    """The config.json of a small model of a family, with one leaf replaced."""
    fields = whole = tiny_config(name).to_dict()
    *parts, leaf = field.split(".")
    for part in parts:
        fields = fields[part]
    fields[leaf] = value
    return json.dumps(whole)


PLANNED: list[tuple[str, str, Any, str]] = [
    ("llava_next", "vision_config.patch_size", 10**12, "patch_size must be at most 100000"),
    ("llava_next", "vision_config.patch_size", 90_000, "ZeroDivisionError"),
    ("llava_onevision", "vision_config.patch_size", [], "patch_size must be at least 1, got []"),
    ("llava_onevision", "vision_config.image_size", [], "image_size must be at least 1, got []"),
    ("internvl", "vision_config.model_type", [1], "config.json"),
    ("internvl", "downsample_ratio", float("nan"), "cannot use this configuration: ValueError"),
    ("qwen2_5_vl", "vision_config.spatial_merge_size", 10**12, "must be at most 100000"),
    ("qwen2_5_vl", "vision_config.window_size", 1, "cannot use this configuration: ValueError"),
    ("qwen2_5_vl", "vision_config.temporal_patch_size", [], "must be at least 1"),
    ("qwen2_5_vl", "vision_config.patch_size", None, "config.json"),
    ("llava", "text_config.num_hidden_layers", 10**12, "num_hidden_layers must be at most 10000"),
    ("llava", "model_type", "nosuch", "Unrecognized model"),
]

RUN: list[tuple[str, str, Any, str]] = [
    ("qwen2_5_vl", "vision_start_token_id", -1, "cannot use this configuration"),
    ("smolvlm", "text_config.pad_token_id", 10**12, "cannot use this configuration"),
    ("llava", "text_config.pad_token_id", 90_000, "cannot use this configuration: AssertionError"),
    ("llava_onevision", "text_config.eos_token_id", 10**12, "cannot use this configuration"),
    ("internvl", "vision_config.hidden_act", "x", "cannot use this configuration: KeyError"),
    ("internvl", "vision_config.hidden_dropout_prob", 1.5, "dropout"),
    ("llava_onevision", "image_grid_pinpoints", [], "cannot use this configuration: TypeError"),
    ("llava", "text_config.vocab_size", 250, "config.json"),
    ("llava_next", "vision_feature_layer", 10**12, "cannot use this configuration: IndexError"),
]


def _check(line: str, file: Path, expected: str) -> None:
    assert str(file) in line
    assert expected in line
    assert len(line) < 600 + len(str(file))


@pytest.mark.parametrize(("name", "field", "value", "expected"), PLANNED)
def test_plans_of_odd_configurations(name, field, value, expected, tmp_path, refused):
    file = tmp_path / "config.json"
    file.write_text(changed(name, field, value))
    _check(refused("plan", file), file, expected)


@pytest.mark.parametrize(("name", "field", "value", "expected"), RUN)
def test_runs_of_odd_configurations(name, field, value, expected, tmp_path, refused):
    file, photo = tmp_path / "config.json", tmp_path / "a.png"
    file.write_text(changed(name, field, value))
    Image.new("RGB", (60, 40), "red").save(photo)
    line = refused("run", photo, "--text", "hi", "--model", file, "--dummy", "--max-new-tokens", 1)
    _check(line, file, expected)


@pytest.mark.parametrize("name", ["llava", "llava-1.5-7b", "tiny", None])
def test_bugs_are_not_blamed_on_what_ships(name):
    with pytest.raises(KeyError), usable(name):
        raise KeyError("x")


def test_memory_has_a_line_of_its_own():
    with pytest.raises(RuntimeError, match=r"^out of memory$"), usable("mine.json"):
        raise RuntimeError("out of memory")


def test_long_errors_are_cut():
    assert len(said(ValueError("x" * 12_000))) == 300


def test_plan_refuses_what_run_refuses(refused, capsys):
    line = refused("plan", "tiny", "--reduce", "todre(keep=99999)")
    assert "todre: keep=99999 exceeds the 196 tokens of the largest image or clip" in line
    assert main(["plan", "tiny", "--reduce", "todre(keep=196)"]) == 0


def test_a_demo_of_nothing_leaves_no_folder(tmp_path, refused):
    out = tmp_path / "out"
    assert "nosuch" in refused("demo", "--model", "nosuch", "--out", out)
    assert not out.exists()
