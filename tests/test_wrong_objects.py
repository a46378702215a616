"""Slips of the hand, such as another object than was asked for: one clear line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import DynamicCache

import mmtok
from mmtok import InputError, Pipeline, plan, reduced
from mmtok.io.image import load_image
from mmtok.models.lvlm import LVLM
from tests.conftest import batch, picture, tiny_model

SPEC, GREEDY = "random(keep=0.5)", {"max_new_tokens": 2, "do_sample": False}


def lvlm() -> LVLM:
    model, processor = tiny_model("llava")
    return LVLM(model=model, processor=processor, name="llava", config=model.config)


def says(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


class Adapter(torch.nn.Module):
    """What PEFT puts around a model: it hands on whatever it does not know itself."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def get_base_model(self) -> Any:
        return self.inner

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda some: some, r"got LVLM: pass its \.model"),
        (lambda some: some.model.model, "with its generate.*got LlavaModel"),
        (lambda some: None, "got NoneType"),
        (lambda some: Adapter(some.model), r"got Adapter: pass its \.get_base_model\(\)"),
        (lambda some: torch.nn.DataParallel(some.model), r"DataParallel: pass its \.module"),
    ],
)
def test_reduced_wants_the_model(wrong: Callable[[LVLM], Any], message: str) -> None:
    def enter() -> None:
        with reduced(wrong(lvlm()), SPEC):
            pass

    says(enter, message)


@pytest.mark.parametrize("wrong", ["tiny", None, 3])
def test_a_pipeline_wants_what_load_returns(wrong: Any) -> None:
    says(lambda: Pipeline(wrong, SPEC), r"expected what mmtok\.load returns, got")
    says(lambda: Pipeline(lvlm().model, SPEC), r"expected what mmtok\.load returns, got")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": [3]}, "images: expected paths or PIL images, got 3"),
        ({"images": [None]}, "images: expected paths or PIL images, got None"),
        ({"images": [torch.zeros(3, 4, 4)]}, "images: expected paths or PIL images, got tensor"),
        ({"videos": [[3]]}, r"videos: expected paths, clips or lists of PIL images, got \[3\]"),
        ({"videos": [picture(1, 9, 9)]}, "videos: expected paths, clips or lists of PIL images"),
        ({"frames": "x"}, "frames must be an int or None, got 'x'"),
        ({"fps": True}, "fps must be a finite number or None, got True"),
        ({"num_beams": 0}, "num_beams must be an int of at least 1, got 0"),
        ({"do_sample": True, "temperature": -1.0}, "generate: `temperature`"),
        ({"nonsense": 3}, r"generate: .*nonsense"),
        ({"cache": DynamicCache(), "count": True}, "count=True runs the prompt twice"),
        ({"past_key_values": DynamicCache(), "count": True}, "count=True runs the prompt twice"),
        ({"streamer": object(), "count": True}, "count=True runs the prompt twice"),
    ],
)
def test_a_prompt(given: dict[str, Any], message: str) -> None:
    given = {"images": [picture(1, 9, 9)]} | given
    says(lambda: Pipeline(lvlm()).generate(text="hi", **GREEDY | given), message)


@pytest.mark.parametrize("prompts", [[("a",)], "abc", None, [3]])
def test_a_batch_of_prompts(prompts: Any) -> None:
    message = r"expected a list of \(images, videos, text\) prompts, got"
    says(lambda: Pipeline(lvlm()).generate_batch(prompts), message)


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (None, {}, "a transformers config, got NoneType"),
        (3, {}, "a transformers config, got int"),
        ("llava-1.5-7b", {"image_size": 336}, r"\(height, width\), got 336"),
        ("llava-1.5-7b", {"image_size": (3, 3, 3)}, r"\(height, width\), got"),
        ("llava-1.5-7b", {"images": "a"}, "images must be an int or None, got 'a'"),
        ("llava-1.5-7b", {"images": 0}, "images must be at least 1, got 0"),
        ("llava-1.5-7b", {"frames": 0}, "frames must be at least 1, got 0"),
        ("llava-1.5-7b", {"frames": 8, "images": 2}, "images=2 and frames=8"),
        ("llava-1.5-7b", {"logits": "x"}, "logits must be 'last' or 'all' or 'none', got 'x'"),
        ("llava-1.5-7b", {"text_tokens": 1.5}, "text_tokens must be an int, got 1.5"),
        ("/nope.json", {}, "expected a model's config.json or the folder of one"),
    ],
)
def test_a_plan(model: Any, given: dict[str, Any], message: str) -> None:
    says(lambda: plan(model, **given), message)


def test_a_plan_of_a_loaded_model() -> None:
    says(lambda: plan(lvlm()), r"got LVLM: pass its \.config")
    says(lambda: plan(lvlm().model), r"pass its \.config")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (None, {}, "name must be a string or PathLike, got None"),
        ("llava", {"seed": "a"}, "seed must be an int, got 'a'"),
        ("llava", {"device": 1.5}, "device must be auto, cpu or cuda; got 1.5"),
        ("llava", {"dtype": torch.int8}, "dtype must be auto"),
    ],
)
def test_load(name: Any, options: dict[str, Any], message: str) -> None:
    says(lambda: mmtok.load(name, dummy=True, **options), message)


def test_load_takes_torchs_own_types() -> None:
    made = mmtok.load("llava", dummy=True, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert made.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("family", "spec", "said", "unsaid"),
    [
        ("llava", "fastv(keep=0.5, layer=1)", "dropping inside the decoder", "passing features"),
        ("qwen2_vl", "a2sf(keep=0.5)", "dropping inside the decoder", "passing features"),
        ("gemma3", "random(keep=0.5)", "gemma3's way of passing features", "inside the decoder"),
    ],
)
def test_beams_are_refused_for_what_stands_against_them(
    family: str, spec: str, said: str, unsaid: str
) -> None:
    model, _ = tiny_model(family)
    with reduced(model, spec), pytest.raises(InputError, match=said) as caught:
        model.generate(**batch(family, "image"), num_beams=2, **GREEDY)
    assert unsaid not in str(caught.value)


@pytest.mark.parametrize("spec", [None, "stride(keep=0.5)"])
def test_more_positions_than_the_model_knows_are_said(
    spec: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline(lvlm(), spec)
    inputs = pipe.lvlm.inputs([picture(1, 50, 50)], "what?")
    read = inputs["input_ids"].shape[1] + 1  # two new tokens, of which the first is read again
    options = {**GREEDY, "min_new_tokens": 2}
    for known, warned in ((read, False), (read - 1, True)):
        monkeypatch.setattr(pipe.lvlm.config.text_config, "max_position_embeddings", known)
        ledger = pipe.run(inputs, **options).ledger
        assert ledger.meta.get("positions") == ({"read": read, "known": known} if warned else None)
        assert (f"warning: {read} positions" in ledger.table()) is warned


def test_files_that_are_none_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(lambda: load_image(""), r"\.: is a directory \(so is an empty path\)")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.new("L", (20, 20)).save(file := tmp_path / "a.png")
    says(lambda: load_image(file), r"a\.png: too large an image, expected at most 100 pixels")
