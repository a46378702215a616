"""Greedy decoding with drafts gives the tokens of plain decoding, one by one."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from mmtok.decoding import Drafter, generate
from mmtok.decoding.drafters.aded import ADED
from mmtok.decoding.drafters.bild import BiLD
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.decoding.drafters.dyspec import DySpec
from mmtok.decoding.drafters.rasd import RASD
from mmtok.decoding.drafters.rsdc import RSDC
from mmtok.decoding.drafters.rsds import RSDS
from tests.decoders import emu3, llama, near, plain, prompts, row

NEW = 32


@cache
def told() -> list[list[int]]:
    """Texts much like what is to be drafted."""
    ids = row(prompts([9]), 0)["input_ids"][0].tolist()
    return [plain(llama(), ids, NEW, scale=scale) for scale in (1.0, 2.0)]


DRAFTERS = {
    "lookup": lambda: "lookup(ngram=1)",
    "recycling": lambda: "recycling",
    "jacobi": lambda: "jacobi(window=4)",
    "draftmodel": lambda: DraftModel(model=near()),
    "draftmodel_argmax": lambda: DraftModel(model=near(), temperature=0.0, stop=0.3),
    "rsdc": lambda: RSDC(model=near()),
    "rsds": lambda: RSDS(model=near()),
    "dyspec": lambda: DySpec(model=near()),
    "bild": lambda: BiLD(model=near(), fallback=0.3),
    "aded": lambda: ADED(corpus=told()),
    "rasd": lambda: "rasd",
    "rasd_model": lambda: RASD(base=RSDC(model=near(), temperature=0.0)),
}
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW}


def new_tokens(sequences: torch.Tensor, inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    return sequences[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("lengths", [[9], [9, 4, 6]], ids=["one", "ragged"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("name", DRAFTERS)
def test_tokens_are_those_of_plain_decoding(name: str, scale: float, lengths: list[int]) -> None:
    model, inputs = llama(), prompts(lengths)
    got = generate(model, inputs, drafter=DRAFTERS[name](), guidance_scale=scale, **GREEDY)
    rows = [row(inputs, r)["input_ids"][0].tolist() for r in range(len(lengths))]
    assert new_tokens(got.sequences, inputs) == [plain(model, r, NEW, scale=scale) for r in rows]
    assert sum(got.stats.hits) > 0
    assert got.stats.target_forwards <= NEW
    assert got.stats.lossless


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_negative_prompts_of_their_own_length(attention: str) -> None:
    model, inputs = llama(attention=attention), prompts([7, 5])
    negative = prompts([3, 11], seed=5)
    got = generate(
        model, inputs, drafter="recycling", guidance_scale=3.0, negative=negative, **GREEDY
    )
    for r, tokens in enumerate(new_tokens(got.sequences, inputs)):
        ids, other = (row(x, r)["input_ids"][0].tolist() for x in (inputs, negative))
        assert tokens == plain(model, ids, NEW, scale=3.0, negative=other)


def test_stock_assisted_generation_is_wrong_under_guidance_and_ours_is_not() -> None:
    """transformers' guidance keeps a cache of its own, which a rejected draft leaves behind."""
    stock_wrong = ours_wrong = 0
    for seed in range(6):
        model, inputs = llama(seed), prompts([9], seed)
        negative = prompts([4], seed + 100)
        options = {
            **GREEDY,
            "guidance_scale": 2.0,
            "negative_prompt_ids": negative["input_ids"],
            "pad_token_id": 0,
        }
        want = model.generate(**inputs, **options)
        assisted = model.generate(**inputs, **options, prompt_lookup_num_tokens=5)
        ours = generate(
            model, inputs, drafter="lookup", guidance_scale=2.0, negative=negative, **GREEDY
        )
        stock_wrong += not torch.equal(assisted, want)
        ours_wrong += not torch.equal(ours.sequences, want)
    assert ours_wrong == 0
    assert stock_wrong >= 3


def test_stock_guidance_keeps_what_assisted_generation_rejected() -> None:
    """Why it is wrong: tokens the guidance has read, against those that were written."""
    model, inputs, negative = llama(), prompts([9]), prompts([4], 100)["input_ids"]
    read = []
    for drafted in ({}, {"prompt_lookup_num_tokens": 5}):
        guide = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, model, negative)
        made = model.generate(
            **inputs, **GREEDY, **drafted, pad_token_id=0, logits_processor=[guide]
        )
        assert made.shape[1] == 9 + NEW
        read.append(guide.unconditional_context["attention_mask"].shape[1])
    assert read[0] == 4 + NEW - 1
    assert read[1] > 2 * read[0]


@pytest.mark.parametrize("name", ["recycling", "rsds", "jacobi", "bild", "aded", "rasd"])
def test_end_of_sequence_inside_a_draft(name: str) -> None:
    model, inputs = llama(), prompts([9, 4])
    ids = [row(inputs, r)["input_ids"][0].tolist() for r in range(2)]
    eos = plain(model, ids[0], NEW)[7]
    got = generate(
        model, inputs, drafter=DRAFTERS[name](), eos_token_id=eos, pad_token_id=eos, **GREEDY
    )
    for r, tokens in enumerate(new_tokens(got.sequences, inputs)):
        want = plain(model, ids[r], NEW, eos=eos)
        assert tokens[: len(want)] == want
        assert set(tokens[len(want) :]) <= {eos}


@pytest.mark.parametrize("new", [1, 2, 3, 7])
def test_maximum_length_inside_a_draft(new: int) -> None:
    model, inputs = llama(), prompts([9, 4])
    got = generate(
        model,
        inputs,
        drafter=DraftModel(model=model, tokens=5),
        do_sample=False,
        max_new_tokens=new,
    )
    for r, tokens in enumerate(new_tokens(got.sequences, inputs)):
        assert tokens == plain(model, row(inputs, r)["input_ids"][0].tolist(), new)


def test_processors_that_read_the_text_see_each_nodes_own_path() -> None:
    model, inputs = llama(), prompts([9])
    options = {**GREEDY, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 4}
    want = model.generate(**inputs, **options, pad_token_id=0)
    got = generate(model, inputs, drafter=DraftModel(model=model), **options)
    assert torch.equal(got.sequences, want)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_image_tokens_of_a_visual_autoregressive_model(scale: float) -> None:
    model, inputs = emu3(), prompts([9, 4], vocabulary=20)
    drafter: Drafter | str = "recycling"
    got = generate(model, inputs, drafter=drafter, guidance_scale=scale, **GREEDY)
    for r, tokens in enumerate(new_tokens(got.sequences, inputs)):
        want = plain(model, row(inputs, r)["input_ids"][0].tolist(), NEW, scale=scale, eos=2)
        assert tokens[: len(want)] == want
