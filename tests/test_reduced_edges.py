"""Interruptions, own loops and calls that `reduced` refuses rather than answer wrongly."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StaticCache

from mmtok import InputError, reduced
from mmtok.models.cache_name import cache_in, cache_name
from tests.conftest import batch, cache_arguments, tiny_model

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
SENTENCES = "sentencekv(keep=0.9, read=0.5, start=2, recent=2, window=4, threshold=0)"


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "a2sf(keep=0.5)", SENTENCES])
@pytest.mark.parametrize("forward", [1, 3])  # the prompt's, and a decode step's
def test_an_interrupt_leaves_no_mode_open(spec: str, forward: int) -> None:
    """Nor does it disturb the next prompt of the same block."""
    model, _ = tiny_model("llava")
    inputs, calls = batch("llava", "image"), 0

    def stop(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == forward:
            raise KeyboardInterrupt

    want = model.generate(**inputs, **GREEDY)
    with reduced(model, spec):
        short = model.generate(**inputs, **GREEDY)
        hook = model.get_decoder().layers[0].mlp.gate_proj.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model.generate(**inputs, **GREEDY)
        hook.remove()
        assert torch.equal(model.generate(**inputs, **GREEDY), short)
        calls, hook = 0, model.get_decoder().layers[0].mlp.gate_proj.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model.generate(**inputs, **GREEDY)
        hook.remove()
    assert torch.overrides._len_torch_function_stack() == 0
    assert torch.equal(model.generate(**inputs, **GREEDY), want)


@pytest.mark.parametrize("spec", ["fastv(keep=0.4, layer=1)", "corematching(keep=0.4)"])
@pytest.mark.parametrize("name", cache_arguments())
def test_dropping_in_the_decoder_needs_a_dynamic_cache_and_one_prefill(
    spec: str, name: str
) -> None:
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=300)
    with reduced(model, spec):
        for options in (
            {"cache_implementation": "static"},
            {"prefill_chunk_size": 200},
            {"generation_config": GenerationConfig(cache_implementation="static")},
        ):
            with pytest.raises(InputError, match="dynamic cache filled in one prefill"):
                model.generate(**inputs, **options)
        for run in (model, model.generate):
            with pytest.raises(InputError, match="dynamic cache on the device, got StaticCache"):
                run(**inputs, **{name: static})
        for kind in ("dynamic", "hybrid"):  # `generate` takes both for one
            model.generate(**inputs, **GREEDY, cache_implementation=kind)


@pytest.mark.parametrize("name", ["snapkv", "sentencekv"])
@pytest.mark.parametrize("window", [35, 1000])
def test_a_window_longer_than_the_prompt(name: str, window: int) -> None:
    """The latest entries stay, as many as the budget allows."""
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image", rows=(0,))
    length = inputs["input_ids"].shape[1]
    with reduced(model, f"{name}(keep=0.5, window={window})"):
        cache = cache_in(model(**inputs))
    for layer in cache.layers:
        if window > length:
            want = torch.arange(length - layer.place.shape[2], length)
            assert torch.equal(layer.place, want.expand_as(layer.place))
        assert layer.place.shape[2] == (length + 1) // 2


@pytest.mark.parametrize("spec", ["stride(keep=9)", "fastv(keep=0.4, layer=1)", "knorm(keep=9)"])
@pytest.mark.parametrize("name", cache_arguments())
def test_a_second_turn_through_generate_is_refused(spec: str, name: str) -> None:
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image", rows=(0,))
    with reduced(model, spec):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        ids = torch.nn.functional.pad(first.sequences, (0, 3), value=50)
        with pytest.raises(InputError, match="pass no filled KV cache"):
            model.generate(input_ids=ids, **{name: cache_in(first)}, **GREEDY)
        whole = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        model.generate(**whole, **GREEDY)


@pytest.mark.parametrize("spec", ["stride(keep=9)", "fastv(keep=0.4, layer=1)", "knorm(keep=9)"])
@pytest.mark.parametrize("name", cache_arguments()[:2])
def test_pixels_behind_a_filled_cache_are_refused(spec: str, name: str) -> None:
    """Unless all is kept, which gives what the stock model gives."""
    model, _ = tiny_model("llava")
    first, second = batch("llava", "image", rows=(0,)), batch("llava", "image", rows=(1,))
    del second["attention_mask"]
    want = model(**second, **{name: cache_in(model(**first))}).logits
    with reduced(model, spec):
        cache = cache_in(model(**first))
        with pytest.raises(InputError, match="pixels behind a filled KV cache"):
            model(**second, **{name: cache})
    with reduced(model, spec.replace("=9", "=1.0").replace("=0.4", "=1.0")):
        got = model(**second, **{name: cache_in(model(**first))}).logits
    assert torch.equal(got, want)


@pytest.mark.parametrize("spec", ["stride(keep=9)", "fastv(keep=0.4, layer=1)", "corematching"])
def test_features_of_the_users_own_are_refused(spec: str) -> None:
    """Also behind a `generate` that failed."""
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    outputs = {"image": model.get_image_features(inputs["pixel_values"], return_dict=True)}
    own = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    own["mm_encoder_outputs"] = outputs
    with reduced(model, spec):
        with pytest.raises(ValueError, match="nonsense"):
            model.generate(**inputs, nonsense=1)
        cache = cache_in(model(**inputs))
        for run in (model, model.generate):
            for more in (own, own | inputs):
                with pytest.raises(InputError, match="mm_encoder_outputs do not work inside"):
                    run(**more)
        with pytest.raises(InputError, match="mm_encoder_outputs do not work inside"):
            model(**own, **{cache_name(model): cache})


def test_labels_beside_dropping_in_the_decoder_are_refused() -> None:
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    inputs["labels"] = inputs["input_ids"]
    refused = pytest.raises(InputError, match="labels do not work")
    with reduced(model, "fastv(keep=0.4, layer=1)"), refused:
        model(**inputs)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("spec", ["stride(keep=9)", "downsample(keep=0.5)", "knorm(keep=9)"])
def test_labels_in_front_of_the_decoder_give_the_loss_of_the_logits(family: str, spec: str) -> None:
    model, _ = tiny_model(family)
    inputs = batch(family, "image")
    ids = inputs["input_ids"]
    inputs["labels"] = torch.nn.functional.pad(ids[:, -5:], (ids.shape[1] - 5, 0), value=-100)
    with reduced(model, spec):
        out = model(**inputs)
    assert (out.logits.shape[1] < ids.shape[1]) == (spec != "knorm(keep=9)")
    want = torch.nn.functional.cross_entropy(out.logits[:, -6:-1].mT, ids[:, -5:])
    torch.testing.assert_close(out.loss, want)


@pytest.mark.parametrize(
    "spec", ["fastv(keep=0.4, layer=1)", "corematching(keep=0.4)", "knorm(keep=9)"]
)
def test_assistants_beside_dropping_in_the_decoder_are_refused(spec: str) -> None:
    model, _ = tiny_model("llava")
    options: list[dict[str, Any]] = [
        {"prompt_lookup_num_tokens": 2},
        {"assistant_model": model},
        {"generation_config": GenerationConfig(prompt_lookup_num_tokens=2)},
    ]
    with reduced(model, spec):
        for option in options:
            with pytest.raises(InputError, match="prompt_lookup_num_tokens"):
                model.generate(**batch("llava", "image", rows=(0,)), **option)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("spec", ["stride(keep=5)", "fastv(keep=0.4, layer=1)"])
def test_arguments_by_position_are_those_by_name(family: str, spec: str) -> None:
    model, _ = tiny_model(family)
    inputs = batch(family, "image")
    names = list(inspect.signature(model.forward).parameters)
    first = [inputs.get(name) for name in names[: names.index("pixel_values") + 1]]
    rest = {name: value for name, value in inputs.items() if name not in names[: len(first)]}
    config = GenerationConfig(**GREEDY)
    ids = inputs.pop("input_ids")
    with reduced(model, spec):
        want = model(input_ids=ids, **inputs).logits
        assert want.shape[1] < ids.shape[1]
        assert torch.equal(model(*first, **rest).logits, want)
        assert torch.equal(model(ids, **inputs).logits, want)
        made = model.generate(input_ids=ids, **inputs, **GREEDY)
        assert torch.equal(model.generate(ids, config, **inputs), made)
        with pytest.raises(TypeError, match="multiple values"):
            model(ids, input_ids=ids, **inputs)
