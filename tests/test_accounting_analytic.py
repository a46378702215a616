"""Closed forms against stored counts of real models and torch's counter, family by family."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, SiglipVisionConfig, SiglipVisionModel

from mmtok import InputError
from mmtok.accounting.analytic import decoder_flops, kv_bytes
from mmtok.accounting.encoders import encoder_flops, fixed_tower
from mmtok.accounting.flops import count_flops
from mmtok.accounting.shapes import MediaShapes, media_shapes
from mmtok.models.cache_name import cache_in, cache_name
from tests.conftest import CASES, batch, tiny_model

GOLDEN = json.loads((Path(__file__).parent / "data/accounting/golden.json").read_text())
LLAMA_7B = AutoConfig.for_model("llama", **GOLDEN["decoder"]["llama_7b"]["config"])


@pytest.mark.parametrize("name", GOLDEN["decoder"])
def test_decoder_golden(name: str) -> None:
    case = GOLDEN["decoder"][name]
    config = AutoConfig.for_model(case["architecture"], **case["config"])
    assert kv_bytes(config, 1, "float16") == case["kv_bytes_per_token_fp16"]
    for row in case["prefill"]:
        assert decoder_flops(config, row["tokens"], logits="all") == row["counted"]
        assert decoder_flops(config, row["tokens"]) == row["counted_logits_last_only"]
    for row in case["decode"]:
        length = row["past_tokens"] + 1
        assert decoder_flops(config, 1, length) == row["counted"]
        assert kv_bytes(config, length, torch.float32) == row["kv_bytes_after_step_fp32_measured"]


@pytest.mark.parametrize("row", GOLDEN["drop_in_layer"])
def test_tokens_leave_inside_the_decoder(row: dict[str, int]) -> None:
    full, kept = (row["n_text"] + row[n] for n in ("n_visual", "kept_visual"))
    lengths = [full] * row["layer_K"] + [kept] * (32 - row["layer_K"])
    assert decoder_flops(LLAMA_7B, full, logits="none") == row["full"]
    assert decoder_flops(LLAMA_7B, lengths, logits="none") == row["pruned"]
    assert kv_bytes(LLAMA_7B, lengths, "float16") == sum(lengths) * 524288 // 32


def test_published_towers() -> None:
    for case in GOLDEN["encoder"].values():
        config = AutoConfig.for_model(case["architecture"] + "_vision_model", **case["config"])
        patches = (config.image_size // config.patch_size) ** 2
        assert fixed_tower(config, patches) == case["counted"]


@pytest.mark.parametrize("name", GOLDEN["qwen2_5_vl"])
def test_windowed_tower_golden(name: str) -> None:
    case = GOLDEN["qwen2_5_vl"][name]
    config = AutoConfig.for_model(
        "qwen2_5_vl", vision_config=case["vision_config"], text_config=case["text_config"]
    )
    for row in case["tower"]:
        assert encoder_flops(config, MediaShapes(grids=(tuple(row["grid_thw"]),))) == row["counted"]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_forward_of_every_family(family: str, kind: str) -> None:
    """Whole batched forward, padding included: counted == encoder + decoder, far below 1 % off."""
    model, _ = tiny_model(family)
    inputs = batch(family, kind)
    rows, length = inputs["input_ids"].shape
    with torch.inference_mode(), count_flops() as count:
        output = model(**inputs)
    config = model.config
    encoder = encoder_flops(config, media_shapes(config, inputs))
    decoder = rows * decoder_flops(config.text_config, length, logits="all")
    assert encoder > 0.02 * count.total  # an error of the encoder alone would be seen
    assert encoder + decoder == pytest.approx(count.total, rel=1e-4)
    layers = cache_in(output).layers
    assert rows * kv_bytes(config.text_config, length, "float32") == sum(
        layer.keys.nbytes + layer.values.nbytes for layer in layers
    )


TEXT = {
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "mistral": {},
    "phi3": {"pad_token_id": 0},
    "qwen3": {"head_dim": 8},
    "smollm3": {"pad_token_id": 0},
}


@pytest.mark.parametrize("kind", TEXT)
def test_text_models_with_windows(kind: str) -> None:
    """Prefill beyond the window, then one decode step: FLOPs and cache as predicted."""
    config = AutoConfig.for_model(
        kind,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        sliding_window=6,
        **TEXT[kind],
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        with count_flops() as prefill:
            cache = cache_in(model(ids, use_cache=True, logits_to_keep=1))
        with count_flops() as step:
            model(ids[:, :1], **{cache_name(model): cache}, use_cache=True)
    assert prefill.total == decoder_flops(config, 10)
    assert step.total == decoder_flops(config, 1, 11)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == kv_bytes(config, 11, "float32")


def test_pooling_head_of_siglip_is_paid_for() -> None:
    size = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = SiglipVisionConfig(**size, num_hidden_layers=1, image_size=28, patch_size=14)
    model = SiglipVisionModel(config).eval()
    with torch.inference_mode(), count_flops() as count:
        model(torch.rand(1, 3, 28, 28))
    assert count.total == fixed_tower(config, 4)
    config.vision_use_head = False
    assert count.total > fixed_tower(config, 4)


def test_padding_crops_are_not_counted() -> None:
    model, _ = tiny_model("llava_next")
    inputs = batch("llava_next", "image")
    padded = inputs | {
        "pixel_values": torch.nn.functional.pad(inputs["pixel_values"], (0,) * 7 + (9,))
    }
    assert media_shapes(model.config, padded) == media_shapes(model.config, inputs)
    with pytest.raises(InputError, match="image_sizes"):
        media_shapes(model.config, {"pixel_values": inputs["pixel_values"]})


def test_no_closed_form_is_an_input_error() -> None:
    mixture: Any = SimpleNamespace(model_type="mixtral")
    with pytest.raises(InputError, match="no closed form for text model 'mixtral'"):
        decoder_flops(mixture, 8)
    with pytest.raises(InputError, match="no closed form for the encoder of 'mixtral'"):
        encoder_flops(mixture, MediaShapes(crops=1))
    with pytest.raises(InputError, match="no closed form for vision tower 'pixtral'"):
        fixed_tower(SimpleNamespace(model_type="pixtral"), 4)
    with pytest.raises(InputError, match="2 entries, expected one per layer"):
        decoder_flops(LLAMA_7B, [8, 8])
    with pytest.raises(InputError, match="unknown dtype 'float17'"):
        kv_bytes(LLAMA_7B, 8, "float17")
