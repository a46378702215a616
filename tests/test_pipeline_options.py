"""Options of a pipeline mean what they mean in `generate`; what a ledger mixes up is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from mmtok import InputError, Pipeline, plan
from mmtok.accounting.analytic import decode_flops, decoder_flops
from mmtok.models.dummy import FAMILIES, tiny_config
from mmtok.models.load import load_config, shipped_names
from mmtok.models.lvlm import LVLM
from mmtok.pipeline import Result
from tests.conftest import batch, tiny_model

SPEC = "random(keep=0.5)"
THREE: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3}


@pytest.fixture
def some() -> Iterator[LVLM]:
    """A tiny LLaVA that never ends an answer by itself; its own configuration is put back."""
    model, processor = tiny_model("llava")
    before = model.generation_config
    model.generation_config = copy(before)
    model.generation_config.eos_token_id = None
    yield LVLM(model=model, processor=processor, name="llava", config=model.config)
    model.generation_config = before


def run(some: LVLM, spec: str | None = SPEC, **options: Any) -> Result:
    return Pipeline(some, spec).run(batch("llava", "image", rows=(0,)), **options)


def length() -> int:
    return int(batch("llava", "image", rows=(0,))["input_ids"].shape[1])


def test_the_defaults_hold_where_nobody_says_otherwise(some: LVLM) -> None:
    some.model.generation_config.max_new_tokens = 2
    some.model.generation_config.do_sample = True
    first = run(some)
    assert first.new_tokens == [32] == run(some, generation_config=GenerationConfig()).new_tokens
    assert first.texts == run(some).texts


@pytest.mark.parametrize("spec", [None, SPEC])
def test_a_generation_config_is_heard(some: LVLM, spec: str | None) -> None:
    config = GenerationConfig(max_new_tokens=5, do_sample=True, temperature=100.0)
    drawn = set()
    for seed in range(3):
        torch.manual_seed(seed)
        out = run(some, spec, generation_config=config)
        assert out.new_tokens == [5]
        drawn.add(out.text)
    assert len(drawn) > 1
    assert run(some, spec, generation_config=config, max_new_tokens=2).new_tokens == [2]
    untouched = GenerationConfig(num_beams=2)
    run(some, spec, generation_config=untouched)
    assert (untouched.max_new_tokens, untouched.do_sample) == (None, None)


@pytest.mark.parametrize("spec", [None, SPEC])
@pytest.mark.parametrize("own", [None, 2])
def test_max_length_counts_the_prompt(some: LVLM, spec: str | None, own: int | None) -> None:
    some.model.generation_config.max_new_tokens = own
    limit = length() + 4
    assert run(some, spec, max_length=limit).new_tokens == [4]
    config = GenerationConfig(max_length=limit)
    assert run(some, spec, generation_config=config).new_tokens == [4]
    with pytest.raises(InputError, match=rf"max_length {length()} leaves no room"):
        run(some, spec, max_length=length())
    with pytest.raises(InputError, match="max_length must be an int, got 'x'"):
        run(some, spec, max_length="x")


@pytest.mark.parametrize("where", ["options", "config", "model", "both"])
def test_the_ledger_knows_the_beams_wherever_they_are_set(some: LVLM, where: str) -> None:
    options: dict[str, Any] = dict(THREE)
    if where == "options":
        options["num_beams"] = 3
    elif where == "model":
        some.model.generation_config.num_beams = 3
    elif where == "config":
        options = {"generation_config": GenerationConfig(num_beams=3, **THREE)}
    else:
        options |= {"generation_config": GenerationConfig(num_beams=2), "num_beams": 3}
    alone = {row.stage: row for row in run(some, **(THREE | {"num_beams": 1})).ledger.stages}
    rows = {row.stage: row for row in run(some, count=True, **options).ledger.stages}
    prefill = rows["prefill"]
    assert prefill.tokens_in == 3 * (alone["prefill"].tokens_in or 0)
    assert prefill.tokens_out == 3
    assert prefill.flops_analytic == pytest.approx(prefill.flops, rel=0.01)


def test_copies_in_a_generation_config(some: LVLM) -> None:
    config = GenerationConfig(num_return_sequences=2, do_sample=True, **THREE)
    out = run(some, generation_config=config)
    assert len(out.texts) == 2
    assert next(r for r in out.ledger.stages if r.stage == "decode").tokens_in == 4


@pytest.mark.parametrize("where", ["options", "config"])
def test_answers_end_where_the_caller_says(some: LVLM, where: str) -> None:
    new = batch("llava", "image", rows=(0, 1))
    whole = Pipeline(some).one_pass(new, _Silent(), max_new_tokens=6)
    ends = [int(whole.sequences[0, -6])]
    if where == "options":
        options: dict[str, Any] = {"eos_token_id": ends}
    else:
        options = {"generation_config": GenerationConfig(eos_token_id=ends)}
    counted = Pipeline(some).run(new, max_new_tokens=6, **options).new_tokens
    assert counted[0] == 1


class _Silent:
    def stage(self, name: str) -> Any:
        from contextlib import nullcontext

        return nullcontext()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prefill_chunk_size", 16),
        ("guidance_scale", 1.5),
        ("prompt_lookup_num_tokens", 2),
        ("assistant_early_exit", 1),
        ("use_cache", False),
        ("cache_implementation", "static"),
    ],
)
@pytest.mark.parametrize("where", ["options", "config", "model"])
def test_what_a_ledger_would_mix_up_is_refused(
    some: LVLM, option: str, value: Any, where: str
) -> None:
    options: dict[str, Any] = dict(THREE)
    if where == "options":
        options[option] = value
    elif where == "config":
        options["generation_config"] = GenerationConfig(**{option: value})
    else:
        setattr(some.model.generation_config, option, value)
    with pytest.raises(InputError, match=option) as caught:
        run(some, **options)
    assert "\n" not in str(caught.value)


def test_an_assistant_is_refused(some: LVLM) -> None:
    with pytest.raises(InputError, match="assistant_model runs a second model"):
        run(some, assistant_model=some.model, **THREE)
    plain = run(some, **THREE).texts
    off: dict[str, Any] = {"assistant_model": None, "prefill_chunk_size": None}
    assert run(some, guidance_scale=1.0, **off, **THREE).texts == plain


@pytest.mark.parametrize("seed", range(3))
def test_the_answer_that_was_drawn_is_counted(some: LVLM, seed: int) -> None:
    some.model.generation_config.eos_token_id = list(range(3, 60))
    torch.manual_seed(seed)
    out = run(some, count=True, do_sample=True, temperature=100.0)
    after = torch.get_rng_state()
    decode = next(row for row in out.ledger.stages if row.stage == "decode")
    assert decode.flops_analytic == pytest.approx(decode.flops, rel=0.01)
    torch.manual_seed(seed)
    assert run(some, do_sample=True, temperature=100.0).text == out.text
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("name", ["attention_mask", "pixel_values"])
def test_what_belongs_to_the_inputs_is_no_option(some: LVLM, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: part of the inputs"):
        run(some, **{name: torch.ones(1)})


def test_a_configuration_of_another_kind_is_refused(some: LVLM) -> None:
    with pytest.raises(InputError, match=r"a GenerationConfig, got \{'num_beams': 2\}"):
        run(some, generation_config={"num_beams": 2})


@pytest.mark.parametrize("spec", [None, SPEC, "fastv(keep=0.5)"])
def test_a_missing_mask_is_inferred_as_generate_does(some: LVLM, spec: str | None) -> None:
    inputs = batch("llava", "image")  # the first row is padded
    some.model.generation_config.eos_token_id = 2
    bare = {name: x for name, x in inputs.items() if name != "attention_mask"}
    assert not inputs["attention_mask"].all()
    got, want = (Pipeline(some, spec).run(x, **THREE) for x in (bare, inputs))
    assert got.texts == want.texts
    tokens = [[(r.tokens_in, r.tokens_out) for r in x.ledger.stages] for x in (got, want)]
    assert tokens[0] == tokens[1]
    assert "attention_mask" not in bare
    del bare["input_ids"]
    with pytest.raises(InputError, match="expected input_ids"):
        Pipeline(some, spec).run(bare)


def test_without_a_pad_token_everything_is_read(some: LVLM) -> None:
    inputs = batch("llava", "image", rows=(0,))
    some.model.generation_config.pad_token_id = None
    got = Pipeline(some, SPEC).run(dict(inputs) | {"attention_mask": None}, **THREE)
    assert got.texts == Pipeline(some, SPEC).run(inputs, **THREE).texts
    assert bool(got.inputs["attention_mask"].all())


CONFIGS = [
    *((name, load_config) for name in shipped_names()),
    *((f, tiny_config) for f in FAMILIES),
]


@pytest.mark.parametrize(("name", "make"), CONFIGS)
@pytest.mark.parametrize("neurons", [None, 40])
def test_decode_steps_in_closed_form(name: str, make: Any, neurons: int | None) -> None:
    text = make(name).text_config
    for start in (0, 1, 5, 30, 60):
        held = [start + 2 * layer % 7 for layer in range(text.num_hidden_layers)]
        for steps in (0, 1, 2, 40):
            each = [
                decoder_flops(text, 1, [n + step for n in held], neurons=neurons)
                for step in range(1, steps + 1)
            ]
            assert decode_flops(text, held, steps, neurons) == sum(each)


@pytest.mark.parametrize("window", [1, 2, 16, 17, 60])
def test_decode_steps_behind_a_sliding_window(window: int) -> None:
    text = tiny_config("gemma3").text_config
    text.sliding_window = window
    assert set(text.layer_types) == {"sliding_attention", "full_attention"}
    for held in (0, window - 2, window - 1, window, 90):
        each = [decoder_flops(text, 1, max(held, 0) + step) for step in range(1, 31)]
        assert decode_flops(text, max(held, 0), 30) == sum(each)


@pytest.mark.parametrize(
    ("name", "reduce", "rows"),
    [
        ("llava-1.5-7b", ["random(keep=0.1)", "damro()"], ("decode", "decode.contrast")),
        ("qwen2.5-vl-3b", "todre(keep=0.1)", ("decode",)),
        ("qwen3-vl-4b", "snapkv(keep=0.1)", ("decode",)),
    ],
)
def test_a_million_new_tokens_are_planned_at_once(name: str, reduce: Any, rows: Any) -> None:
    start = time.perf_counter()
    made = plan(name, reduce=reduce, new_tokens=10**6)
    assert time.perf_counter() - start < 5
    flops = {row.stage: row.flops_analytic for row in made.reduced.ledger.stages}
    assert all(type(flops[row]) is int for row in rows)
