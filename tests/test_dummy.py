"""Tiny models and their processors: every placeholder stands for one visual feature."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig

from mmtok import InputError
from mmtok.models.dummy import FAMILIES, tiny_config
from mmtok.models.load import LVLM, load, load_config
from mmtok.models.processors import build_processor

VIDEO = (
    "llava_onevision",
    "llava_next_video",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "smolvlm",
)
ISSUE = {"llava", "llava_next", "gemma3", "paligemma", *VIDEO}


@cache
def lvlm(family: str) -> LVLM:
    return load(family, dummy=True)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def clip(frames: int = 4) -> list[Image.Image]:
    return [picture(80, 60, seed) for seed in range(frames)]


def features(model: Any, inputs: dict[str, torch.Tensor], kind: str) -> int:
    """How many visual features the stock encoder makes of the inputs."""
    encode = getattr(model.base_model, f"get_{kind}_features", None)
    if encode is None:
        return 0
    known = set(inspect.signature(encode).parameters)
    given = {key: value for key, value in inputs.items() if key in known}
    if not any(key.startswith("pixel_values") for key in given):
        return 0
    found = encode(**given, return_dict=True).pooler_output
    return sum(x.shape[:-1].numel() for x in found)


def assert_counts_agree(model: LVLM, inputs: dict[str, torch.Tensor]) -> None:
    for kind in ("image", "video"):
        token = getattr(model.config, f"{kind}_token_id", None)
        placeholders = int((inputs["input_ids"] == token).sum()) if token is not None else 0
        assert placeholders == features(model.model, inputs, kind)


def assert_generates(model: LVLM, inputs: dict[str, torch.Tensor]) -> None:
    out = model.model.generate(**inputs, min_new_tokens=3, max_new_tokens=3, do_sample=False)
    length = inputs["input_ids"].shape[1]
    assert out.shape == (len(inputs["input_ids"]), length + 3)
    assert torch.equal(out[:, :length], inputs["input_ids"])
    assert bool(torch.isfinite(model.model(**inputs).logits).all())


def test_all_families_are_there() -> None:
    assert set(FAMILIES) >= ISSUE
    with pytest.raises(InputError, match="did you mean 'qwen2_vl'"):
        tiny_config("qwen2vl")
    stranger = BertConfig()
    with pytest.raises(InputError, match="no processor can be built"):
        build_processor(stranger)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_config(family: str) -> None:
    config = tiny_config(family)
    assert config.model_type == family
    assert config.text_config.num_hidden_layers == 4
    assert sum(p.numel() for p in lvlm(family).model.parameters()) < 400_000


def test_gemma3_slides() -> None:
    text = tiny_config("gemma3").text_config
    assert set(text.layer_types) == {"sliding_attention", "full_attention"}


@pytest.mark.parametrize("family", FAMILIES)
def test_images_in_prompts_of_different_length(family: str) -> None:
    model = lvlm(family)
    one, two = picture(112, 112, 1), picture(150, 100, 2)
    inputs = model.inputs_batch(
        [([one, two], None, "compare the two"), ([two], None, "what?"), ([one], None, "why so?")]
    )
    mask = inputs["attention_mask"]
    assert len(set(mask.sum(1).tolist())) > 1
    assert bool((mask.diff(dim=1) >= 0).all()), "padding is on the left"
    assert (inputs["input_ids"][1:] == model.config.image_token_id).sum(1).min() >= 16
    assert_counts_agree(model, inputs)
    assert_generates(model, inputs)


@pytest.mark.parametrize("family", sorted(ISSUE - {"paligemma"}))
def test_a_prompt_without_images_beside_one_with(family: str) -> None:
    model = lvlm(family)
    inputs = model.inputs_batch([([picture(112, 112)], None, "what?"), (None, None, "hello")])
    assert int((inputs["input_ids"][1] == model.config.image_token_id).sum()) == 0
    assert_counts_agree(model, inputs)
    assert_generates(model, inputs)
    assert_generates(model, model.inputs(text="hello"))


@pytest.mark.parametrize("family", VIDEO)
def test_clips(family: str) -> None:
    model = lvlm(family)
    inputs = model.inputs_batch(
        [(None, [clip(), clip()], "which moves?"), (None, [clip()], "what?")], fps=1.0
    )
    assert_counts_agree(model, inputs)
    assert_generates(model, inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_beside_an_image(family: str) -> None:
    model = lvlm(family)
    inputs = model.inputs([picture(112, 112)], "what?", [clip()])
    assert_counts_agree(model, inputs)
    assert_generates(model, inputs)


@pytest.mark.parametrize("family", sorted(ISSUE - set(VIDEO)))
def test_a_family_without_clips_reads_frames_as_images(family: str) -> None:
    model = lvlm(family)
    as_clip, as_images = model.inputs(videos=[clip()], text="x"), model.inputs(clip(), "x")
    assert as_clip.keys() == as_images.keys()
    assert all(torch.equal(as_clip[key], as_images[key]) for key in as_clip)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_survives_the_byte_tokenizer(family: str) -> None:
    tokenizer = lvlm(family).processor.tokenizer
    text = "Is there a café? 3 + 4 = 7\n日本"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert max(ids) < tiny_config(family).text_config.vocab_size


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava-1.5-7b", {"<image>": 32000, "<pad>": 32001}),
        ("llava-onevision-0.5b", {"<image>": 151646, "<video>": 151647, "<|im_end|>": 151645}),
        ("qwen2.5-vl-7b", {"<|image_pad|>": 151655, "<|vision_start|>": 151652}),
        ("internvl3-8b", {"<IMG_CONTEXT>": 151667}),
        ("smolvlm-256m", {"<image>": 49190, "<end_of_utterance>": 49279}),
    ],
)
def test_special_tokens_of_real_models_keep_their_ids(name: str, expected: dict[str, int]) -> None:
    tokenizer = build_processor(load_config(name)).tokenizer
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in expected} == expected
    assert tokenizer("".join(expected))["input_ids"] == list(expected.values())


@pytest.mark.parametrize(
    ("name", "side", "tokens"),
    [
        ("llava-1.5-7b", 336, 24 * 24),
        ("llava-next-7b", 672, 24 * 24 + 48 * (48 + 1)),
        ("llava-onevision-7b", 768, 27 * 27 + 54 * (54 + 1)),
        ("qwen2.5-vl-7b", 336, 12 * 12),
        ("qwen3-vl-8b", 640, 20 * 20),
        ("internvl3-8b", 448, 256),
        ("smolvlm-256m", 512, (4 * 4 + 1) * 64),
    ],
)
def test_real_sizes_give_the_published_counts(name: str, side: int, tokens: int) -> None:
    config = load_config(name)
    processor = build_processor(config)
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}])
    ids = processor(text=[prompt], images=[[picture(side, side)]])["input_ids"][0]
    assert list(ids).count(config.image_token_id) == tokens
