"""`load`: names, folders, devices, types, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmtok import InputError, load
from mmtok.models.load import LVLM, load_config, shipped_names

BILLION = {
    "internvl3-8b": 7.94,
    "llava-1.5-13b": 13.35,
    "llava-1.5-7b": 7.06,
    "llava-next-7b": 7.06,
    "llava-onevision-0.5b": 0.89,
    "llava-onevision-7b": 8.03,
    "qwen2.5-vl-3b": 3.75,
    "qwen2.5-vl-7b": 8.29,
    "qwen3-vl-4b": 4.44,
    "qwen3-vl-8b": 8.77,
    "smolvlm-256m": 0.26,
}
PICTURE = Image.new("RGB", (90, 60), "navy")


@pytest.fixture(scope="module")
def llava() -> LVLM:
    return load("llava", dummy=True)


@pytest.fixture(scope="module")
def folder(llava: LVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder as `save_pretrained` writes it."""
    path = tmp_path_factory.mktemp("model")
    llava.model.save_pretrained(path)
    llava.processor.save_pretrained(path)
    return path


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_configurations_have_the_published_size(name: str) -> None:
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(load_config(name))
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == BILLION[name]


def test_dummy_is_ready_for_inference(llava: LVLM) -> None:
    assert llava.family == "llava"
    assert llava.name == "llava"
    assert llava.device.type == "cpu"
    assert llava.dtype == torch.float32
    assert not llava.model.training
    assert not any(p.requires_grad for p in llava.model.parameters())
    assert llava.config._attn_implementation == "sdpa"


def test_dummy_weights_follow_the_seed() -> None:
    first, again, other = (load("qwen3_vl", dummy=True, seed=s).model for s in (1, 1, 2))
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_dummy_ties_and_norms() -> None:
    model = load("gemma3", dummy=True).model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    untied = load("internvl", dummy=True).model
    assert not torch.equal(untied.lm_head.weight, untied.get_input_embeddings().weight)
    assert bool((untied.base_model.language_model.norm.weight == 1).all())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(dtype: str) -> None:
    lvlm = load("qwen2_vl", dummy=True, dtype=dtype)
    assert lvlm.dtype == getattr(torch, dtype)
    inputs = lvlm.inputs([PICTURE], "what?")
    assert inputs["pixel_values"].dtype == lvlm.dtype
    assert bool(torch.isfinite(lvlm.model(**inputs).logits).all())


def test_attention_implementation() -> None:
    assert load("llava", dummy=True, attn_implementation="eager").config._attn_implementation == (
        "eager"
    )


def test_folder_gives_back_what_was_saved(llava: LVLM, folder: Path) -> None:
    loaded = load(str(folder))
    inputs, expected = loaded.inputs([PICTURE], "what?"), llava.inputs([PICTURE], "what?")
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[key], expected[key]) for key in inputs)
    torch.testing.assert_close(loaded.model(**inputs).logits, llava.model(**expected).logits)


@pytest.mark.parametrize("part", ["", "config.json"])
def test_dummy_of_a_folder_or_a_config_file(folder: Path, part: str) -> None:
    assert load(str(folder / part), dummy=True).family == "llava"


def test_several_questions_about_the_same_image(llava: LVLM) -> None:
    inputs = llava.inputs([PICTURE], ["what?", "and what is there to be seen?"])
    assert inputs["input_ids"].shape[0] == 2
    assert inputs["pixel_values"].shape[0] == 2
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][1].all()


def test_decode(llava: LVLM) -> None:
    ids = llava.inputs([PICTURE], ["what?", "and how?"])["input_ids"]
    assert llava.decode(ids) == ["USER: \nwhat? ASSISTANT:", "USER: \nand how? ASSISTANT:"]


def test_a_prompt_the_processor_refuses(llava: LVLM) -> None:
    with pytest.raises(InputError, match="at least one prompt"):
        llava.inputs_batch([])
    with pytest.raises(InputError, match="number of <image> tokens"):
        llava.inputs([PICTURE], "a second <image> that is not there")
    with pytest.raises(InputError, match="frame"):
        llava.inputs(videos=[[]], text="an empty clip")
    with pytest.raises(InputError, match="fps"):
        load("qwen2_vl", dummy=True).inputs(videos=[[PICTURE] * 2], text="x", fps=0)
    uneven = [(None, [[PICTURE] * n], "x") for n in (2, 3)]
    with pytest.raises(InputError, match="equal frame counts"):
        load("llava_onevision", dummy=True).inputs_batch(uneven)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("llava-1.5-8b", {"dummy": True}, "did you mean 'llava-1.5-7b'"),
        ("qwen2.5vl-7b", {}, "did you mean 'qwen2.5-vl-7b'"),
        ("llava-1.5-7b", {}, "without weights: pass dummy=True"),
        ("", {}, "unknown model"),
        ("./nothing/here", {}, "no such folder"),
        ("nothing.json", {"dummy": True}, "no such folder or file"),
        ("llava", {"dummy": True, "device": "gpu"}, "device must be auto, cpu or cuda"),
        ("llava", {"dummy": True, "device": "cuda:99"}, "torch sees"),
        ("llava", {"dummy": True, "dtype": "int8"}, "dtype must be"),
        ("llava", {"dummy": True, "attn_implementation": "magic"}, "attn_implementation"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load(name, **options)
    assert "\n" not in str(caught.value)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="torch sees 0 GPUs"):
        load("llava", dummy=True, device="cuda")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a model's config.json"),
        ("[]", "names no model_type"),
        ('{"model_type": "bert"}', "not an image-text-to-text model"),
        ('{"model_type": "nonsense"}', "not a model's config.json"),
    ],
)
def test_bad_config(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=said):
        load(str(tmp_path), dummy=True)


def test_bad_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InputError, match=r"no \.safetensors"):
        load(str(tmp_path))
    weights = (folder / "model.safetensors").read_bytes()
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="cannot load"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="not an image-text-to-text model"):
        load(str(tmp_path))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub\nmore")

    monkeypatch.setattr(AutoConfig, "from_pretrained", fail)
    with pytest.raises(InputError, match="We couldn't connect") as caught:
        load("someone/something")
    assert "\n" not in str(caught.value)


def test_import_is_light() -> None:
    heavy = "{'torch', 'transformers'} & set(sys.modules)"
    code = f"import sys, mmtok.models.load; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
