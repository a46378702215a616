"""Calls in the middle of `generate`, compiled models, and beams where nothing is reduced."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from mmtok import InputError, Pipeline, load, reduced
from mmtok.models.reduced import generate_positions
from mmtok.models.reduction import Reduction
from mmtok.pruning import build
from tests.conftest import batch, picture, tiny_model

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
SENTENCES = "sentencekv(keep=0.9, read=0.5, start=2, recent=2, window=4, threshold=0)"
INSIDE = ["fastv(keep=0.4, layer=1)", "snapkv(keep=0.5)", SENTENCES, "corematching(keep=0.4)"]
FLAT = ["internvl", "gemma3", "paligemma"]


def between(call: Callable[[], Any]) -> LogitsProcessorList:
    """A logits processor that calls the model and changes nothing."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        call()
        return scores

    return LogitsProcessorList([process])


def text() -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[1, 50, 60, 70]])}


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        *itertools.product(["llava", "qwen2_vl"], ["stride(keep=9)", "random(keep=1.0)"]),
        ("llava", "damro()"),
    ],
)
def test_text_in_the_middle_of_generate_passes_by(family: str, spec: str) -> None:
    """It reads what the stock model reads, and the outer prompt goes on as if alone."""
    model, _ = tiny_model(family)
    inputs, seen = batch(family, "image"), []
    want = model(**text()).logits
    with reduced(model, spec) as reduction:
        alone = model.generate(**inputs, **GREEDY)
        tokens, contrast = reduction.tokens, reduction.contrast
        for call in (
            lambda: seen.append(model(**text()).logits),
            lambda: seen.append(model(text()["input_ids"]).logits),
            lambda: model.generate(**text(), max_new_tokens=2),
        ):
            got = model.generate(**inputs, **GREEDY, logits_processor=between(call))
            assert torch.equal(got, alone)
            assert reduction.tokens == tokens
            assert (reduction.contrast is None) == (contrast is None)
    assert len(seen) == 10
    assert all(torch.allclose(x, want, atol=1e-5) for x in seen)


@pytest.mark.parametrize("spec", ["stride(keep=9)", "random(keep=1.0)"])
def test_guidance_in_front_of_the_decoder_is_that_of_the_shortened_prompt(spec: str) -> None:
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    short = Reduction(model, build(spec)).prepare(inputs, lambda i: generate_positions(model, i))
    want = model.generate(**short, **GREEDY, guidance_scale=1.5)[:, -5:]
    with reduced(model, spec) as reduction:
        got = model.generate(**inputs, **GREEDY, guidance_scale=1.5)
        assert len(reduction.tokens) > 0
    assert torch.equal(got[:, -5:], want)
    assert not torch.equal(got[:, -5:], model.generate(**short, **GREEDY)[:, -5:])


@pytest.mark.parametrize("spec", INSIDE)
def test_calls_beside_dropping_in_the_decoder_are_refused(spec: str) -> None:
    """Guidance before anything runs; after a refusal the next prompt comes out as ever."""
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    with reduced(model, spec) as reduction:
        alone, tokens = model.generate(**inputs, **GREEDY), reduction.tokens
        for options in (
            {"guidance_scale": 1.5},
            {"generation_config": GenerationConfig(guidance_scale=1.5)},
        ):
            with pytest.raises(InputError, match="guidance_scale runs a second prompt"):
                model.generate(**inputs, **options)
        for call in (
            lambda: model(**text()),
            lambda: model(**text(), use_cache=False),
            lambda: model(**inputs),
            lambda: model.generate(**text(), max_new_tokens=2),
        ):
            with pytest.raises(InputError, match="called for another prompt while generate"):
                model.generate(**inputs, **GREEDY, logits_processor=between(call))
        assert reduction.cache is None
        model.generate(**inputs, **GREEDY, guidance_scale=1.0)
        assert torch.equal(model.generate(**inputs, **GREEDY), alone)
        assert reduction.tokens == tokens


@pytest.mark.parametrize("outer", ["image", "text"])
@pytest.mark.parametrize("spec", ["stride(keep=9)", *INSIDE])
def test_pixels_in_the_middle_of_generate_are_refused(outer: str, spec: str) -> None:
    """Also where the outer prompt has none: the inner one would leave its state behind."""
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    prompt = inputs if outer == "image" else text()
    for call in (lambda: model(**inputs), lambda: model.generate(**inputs, max_new_tokens=1)):
        with reduced(model, spec), pytest.raises(InputError, match="while generate"):
            model.generate(**prompt, **GREEDY, logits_processor=between(call))


@pytest.mark.parametrize("spec", INSIDE)
def test_text_beside_text_passes_by_everywhere(spec: str) -> None:
    model, _ = tiny_model("llava")
    want = model.generate(**text(), **GREEDY, guidance_scale=1.5)
    with reduced(model, spec):
        assert torch.equal(model.generate(**text(), **GREEDY, guidance_scale=1.5), want)


def test_pixels_pass_by_where_all_is_kept() -> None:
    model, _ = tiny_model("llava")
    inputs, seen = batch("llava", "image"), []
    want, alone = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    with reduced(model, "random(keep=1.0)"):
        process = between(lambda: seen.append(model(**inputs).logits))
        assert torch.equal(model.generate(**inputs, **GREEDY, logits_processor=process), alone)
    assert len(seen) == 5
    assert all(torch.equal(x, want) for x in seen)


@pytest.mark.parametrize("family", FLAT)
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2}])
def test_beams_where_nothing_is_reduced(family: str, options: dict[str, Any]) -> None:
    model, _ = tiny_model(family)
    inputs = batch(family, "image")
    options = options | {"do_sample": "num_return_sequences" in options}

    def run() -> Tensor:
        torch.manual_seed(0)
        made: Tensor = model.generate(**inputs, **GREEDY | options)
        return made

    want = run()
    for specs in ("random(keep=1.0)", ["random(keep=1.0)", "fastv(keep=1.0, layer=1)"]):
        with reduced(model, specs):
            assert torch.equal(run(), want)
    with reduced(model, "random(keep=0.5)"), pytest.raises(InputError, match="way of passing"):
        run()


def test_a_pipeline_without_reducers_takes_beams_on_internvl() -> None:
    made = Pipeline(load("internvl", dummy=True, device="cpu")).generate(
        [picture(1, 40, 40)], "a", num_beams=2, **GREEDY
    )
    assert made.new_tokens == [5]


@pytest.mark.parametrize("spec", ["random(keep=1.0)", "stride(keep=0.5)"])
def test_generate_records_no_gradients_where_weights_want_them(spec: str) -> None:
    """As the stock method; `forward` does."""
    model, saved = copy.deepcopy(tiny_model("llava")[0]).requires_grad_(True), []

    def note(x: Tensor) -> Tensor:
        saved.append(x.shape)
        return x

    notes = torch.autograd.graph.saved_tensors_hooks(note, lambda x: x)
    with notes, reduced(model, spec) as reduction:
        model.generate(**batch("llava", "image"), **GREEDY)
        assert not saved
        assert not reduction.visual_tokens[0].features.requires_grad
        model(**batch("llava", "image")).logits.sum().backward()
    assert saved
    assert model.model.vision_tower.get_input_embeddings().weight.grad.abs().sum() > 0


def test_tokens_do_not_follow_inputs_that_were_filled_anew() -> None:
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    inputs = inputs | {"input_ids": inputs["input_ids"].clone()}
    want = (inputs["input_ids"] == model.config.image_token_id).flatten().nonzero().squeeze(1)
    with reduced(model, "random(keep=1.0)") as reduction:
        model.generate(**inputs, **GREEDY)
        inputs["input_ids"].fill_(5)
    assert torch.equal(torch.cat(reduction.media[0].places), want)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_beams", 2), ("cache_implementation", "static"), ("prompt_lookup_num_tokens", 2)],
)
def test_the_models_own_options_count_where_a_call_says_nothing(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a configuration of the call as well, as `generate` fills its gaps from the model's."""
    model, _ = tiny_model("llava")
    own = copy.deepcopy(model.generation_config)
    setattr(own, name, value)
    monkeypatch.setattr(model, "generation_config", own)
    config = GenerationConfig(**GREEDY)
    with reduced(model, "snapkv(keep=0.5)"), pytest.raises(InputError, match="inside the decoder"):
        model.generate(**batch("llava", "image"), generation_config=config)


def test_new_tokens_of_the_model_stand_above_a_max_length_of_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = tiny_model("llava")
    own = copy.deepcopy(model.generation_config)
    own.max_new_tokens = own.min_new_tokens = 3
    monkeypatch.setattr(model, "generation_config", own)
    inputs = batch("llava", "image")
    config = GenerationConfig(do_sample=False, max_length=inputs["input_ids"].shape[1] + 7)
    want = model.generate(**inputs, generation_config=config)
    with reduced(model, "random(keep=1.0)"):
        assert torch.equal(model.generate(**inputs, generation_config=config), want)


def compile_part(model: Any, part: str) -> None:
    torch._dynamo.reset()
    if part == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif part == "wrapped":
        inner = torch.compile(model.base_model.language_model, backend="eager")
        model.base_model.language_model = inner
    else:
        model.get_submodule(part).compile(backend="eager")


@pytest.mark.parametrize(
    "part", ["", "model.language_model", "model.language_model.layers.1.mlp", "forward", "wrapped"]
)
def test_compiled_models_are_refused_inside_the_decoder_only(part: str) -> None:
    """Compiled code does not notice hooks, so the reducers would do nothing."""
    model = copy.deepcopy(tiny_model("llava")[0])
    inputs = batch("llava", "image", rows=(0,))
    with reduced(model, "stride(keep=9)"):
        want = model.generate(**inputs, **GREEDY)
    compile_part(model, part)
    for spec in INSIDE:
        with pytest.raises(InputError, match="is compiled"), reduced(model, spec):
            pass
    assert "generate" not in vars(model)
    assert not model._forward_pre_hooks
    if part in ("", "model.language_model.layers.1.mlp"):  # compiling anything takes a while
        with reduced(model, "stride(keep=9)"):
            assert torch.equal(model.generate(**inputs, **GREEDY), want)


def test_a_compiled_vision_tower_does_not_stand_against_the_decoder() -> None:
    model = copy.deepcopy(tiny_model("llava")[0])
    model.base_model.vision_tower.compile(backend="eager")
    with reduced(model, "fastv(keep=0.4, layer=1)"):
        assert model.get_decoder().layers[1]._forward_pre_hooks
