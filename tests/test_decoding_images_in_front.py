"""Models with images in front of the text, drafts behind it: token by token as stock `generate`."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

import mmtok
from mmtok.decoding import drafter_registry, generate
from mmtok.decoding.drafters.aded import ADED
from mmtok.decoding.drafters.bild import BiLD
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.decoding.drafters.dyspec import DySpec
from mmtok.decoding.drafters.rsdc import RSDC
from mmtok.decoding.drafters.rsds import RSDS
from mmtok.decoding.drafters.s2d import S2D
from mmtok.decoding.drafters.spectr import SpecTr
from mmtok.errors import InputError
from tests.conftest import batch, tiny_model
from tests.decoders import llama, prompts, row

NEW = 10
NEGATIVE = [1, 40, 41, 42]


def text_model(family: str) -> dict[str, Any]:
    """A draft model of the same vocabulary that does not see images."""
    config = tiny_model(family)[0].config
    small = llama(vocabulary=config.get_text_config().vocab_size)
    return {"model": small, "drop": (config.image_token_id,)}


DRAFTERS: dict[str, Any] = {
    "lookup": lambda family: "lookup(ngram=1)",
    "recycling": lambda family: "recycling",
    "jacobi": lambda family: "jacobi(window=3)",
    "draftmodel": lambda family: DraftModel(**text_model(family)),
    "spectr": lambda family: SpecTr(**text_model(family)),
    "rsdc": lambda family: RSDC(**text_model(family)),
    "rsds": lambda family: RSDS(**text_model(family)),
    "dyspec": lambda family: DySpec(**text_model(family), budget=3),
    "bild": lambda family: BiLD(**text_model(family), fallback=0.0, tokens=3),
    "s2d": lambda family: S2D(**text_model(family), exits=(1,), threshold=0.1),
    "aded": lambda family: ADED(corpus=[wanted(family, 1.0, 0)], iterations=20),
    "rasd": lambda family: "rasd",
    "earlyexit": lambda family: "earlyexit",
    "dynamicexit": lambda family: "dynamicexit(prior=0.9, tokens=3)",
}


@cache
def wanted(family: str, scale: float, at: int) -> list[int]:
    """Stock greedy tokens of one row, with the end of sequence switched off."""
    model, _ = tiny_model(family)
    guided = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        scale, model, unconditional_ids=torch.tensor([NEGATIVE]), use_cache=False
    )
    inputs = batch(family, "image", (at,))
    made = model.generate(
        **inputs,
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([guided] if scale != 1 else []),
    )
    return made[0, inputs["input_ids"].shape[1] :].tolist()


def ours(family: str, drafter: str, scale: float, rows: tuple[int, ...], **options: Any) -> Any:
    inputs = batch(family, "image", rows)
    negative = {"input_ids": torch.tensor([NEGATIVE] * len(rows))} if scale != 1 else None
    known = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    made = generate(
        tiny_model(family)[0],
        inputs,
        drafter=DRAFTERS[drafter](family),
        guidance_scale=scale,
        negative=negative,
        **(known | options),
    )
    return made.sequences[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("drafter", drafter_registry.names())
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_tokens_are_those_of_stock_generate(family: str, drafter: str) -> None:
    for scale in (1.0, 2.0):
        for rows in ((0,), (0, 1)):
            got = ours(family, drafter, scale, rows)
            assert got == [wanted(family, scale, at) for at in rows], (scale, rows)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_ends_and_lengths_inside_a_draft(family: str, scale: float) -> None:
    want = [wanted(family, scale, at) for at in (0, 1)]
    eos = want[0][4]
    got = ours(family, "recycling", scale, (0, 1), eos_token_id=eos)
    for tokens, full in zip(got, want, strict=True):
        end = full.index(eos) + 1 if eos in full else NEW
        assert tokens[:end] == full[:end]
        assert set(tokens[end:]) <= {0}
    for new in (1, 2, 5):
        got = ours(family, "recycling", scale, (0, 1), max_new_tokens=new)
        assert got == [full[:new] for full in want]


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "llava_next", "smolvlm", "paligemma"])
def test_further_families(family: str) -> None:
    got = ours(family, "recycling", 1.0, (0, 1))
    assert got == [wanted(family, 1.0, at) for at in (0, 1)]


def test_text_behind_an_image_call_has_places_of_its_own() -> None:
    """M-RoPE models keep an offset from the last images; a text batch must not inherit it."""
    ours("qwen2_5_vl", "recycling", 1.0, (0,))
    model, inputs = tiny_model("qwen2_5_vl")[0], prompts([9, 4], vocabulary=60)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    got = generate(model, inputs, drafter="recycling", **options).sequences[:, 9:]
    for r in range(2):
        alone = row(inputs, r)
        want = model.generate(**alone, pad_token_id=0, **options)
        assert got[r].tolist() == want[0, alone["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_negative_prompts_with_images_of_their_own(family: str) -> None:
    model, _ = tiny_model(family)
    inputs, negative = batch(family, "image", (0,)), batch(family, "image", (1,))
    got = generate(
        model,
        inputs,
        drafter="recycling",
        guidance_scale=2.0,
        negative=negative,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
    ).sequences[0, inputs["input_ids"].shape[1] :]
    streams = [batch(family, "image", (0,)), batch(family, "image", (1,))]
    for token in got:
        c, u = (model(**s).logits[0, -1].log_softmax(-1) for s in streams)
        assert (u + 2 * (c - u)).argmax() == token
        for stream in streams:
            for key, fill in {
                "input_ids": token,
                "attention_mask": 1,
                "mm_token_type_ids": 0,
            }.items():
                if key in stream:
                    new = torch.full((1, 1), int(fill))
                    stream[key] = torch.cat([stream[key], new], 1)


def test_reduced_prompts_are_refused_where_the_cache_is_shorter() -> None:
    model, _ = tiny_model("llava")
    with (
        mmtok.reduced(model, "todre(keep=0.5)"),
        pytest.raises(InputError, match=r"inside mmtok\.reduced"),
    ):
        generate(model, batch("llava", "image"), drafter="recycling", max_new_tokens=4)
