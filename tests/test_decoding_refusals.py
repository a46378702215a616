"""Arguments of `generate` that would be wrong are refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, TopKLogitsWarper

from mmtok.decoding import drafter_registry, generate, verifier_registry
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.errors import InputError
from tests.decoders import llama, prompts

DOCS = Path(__file__).parents[1] / "docs" / "decoding.md"


def ours(**options: Any) -> list[int]:
    known = {"drafter": "lookup", "max_new_tokens": 8, "do_sample": False} | options
    tokens: list[int] = generate(llama(), prompts([5]), **known).sequences[0, 5:].tolist()
    return tokens


def infinite(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return scores.index_fill(-1, torch.tensor([3]), torch.inf)


@pytest.mark.parametrize("sample", [False, True])
def test_the_list_of_processors_of_transformers_is_a_list(sample: bool) -> None:
    plain = ours(do_sample=sample)
    assert ours(do_sample=sample, logits_processor=LogitsProcessorList()) == plain
    forced = LogitsProcessorList([lambda ids, z: torch.where(torch.arange(24) == 3, z, -torch.inf)])
    assert ours(do_sample=sample, logits_processor=forced) == [3] * 8
    assert ours(do_sample=sample, logits_processor=lambda _: forced) == [3] * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits_processor": TopKLogitsWarper(3)}, "put it into a list"),
        ({"logits_processor": 3}, "put it into a list"),
        ({"logits_processor": [infinite]}, "not finite"),
        ({"logits_processor": [lambda ids, z: z * torch.nan]}, "not finite"),
        ({"logits_processor": [lambda ids, z: z - torch.inf]}, "not finite"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be a finite number"),
        ({"guidance_scale": "2"}, "guidance_scale must be a finite number"),
    ],
)
@pytest.mark.parametrize("sample", [False, True])
def test_refused_in_one_line(options: dict[str, Any], message: str, sample: bool) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ours(do_sample=sample, **options)
    assert "\n" not in str(caught.value)


def test_every_name_in_the_tables_of_the_documentation_is_registered() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for title, registry in (("Drafters", drafter_registry), ("Verifiers", verifier_registry)):
        section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
        named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert sorted(named) == registry.names()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("recycling(children=3)", "children must be a list, each an int, got 3"),
        ("lookup(tokens=2.5)", "tokens must be an int, got 2.5"),
        ("lookup(skip=(1, 'a'))", "skip must be a list"),
        ("aded(corpus=5)", "corpus must be a list, each a list, each an int, got 5"),
        ("dynamicexit(layers=2)", "layers must be a list, each an int, got 2"),
        ("rasd(base=3)", "base must be Drafter or a string, got 3"),
        ("jacobi(coupled=1)", "coupled must be True or False, got 1"),
        ("lantern(delta='x')", "delta must be a finite number, got 'x'"),
        ("lantern(near=3)", "near must be Tensor or None, got 3"),
        ("recycling(children=(2, -1, 1))", "children must be counts up to successors=8"),
        ("rollback(tau=None)", "tau must be a finite number, got None"),
    ],
)
def test_values_of_another_type_are_refused_in_one_line(spec: str, message: str) -> None:
    name = spec.split("(")[0]
    registry = drafter_registry if name in drafter_registry.names() else verifier_registry
    with pytest.raises(InputError, match=re.escape(f"{name}: {message}")) as caught:
        registry.build(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rsdc", {"branching": (2000, 2000)}),
        ("rsdc", {"branching": (32, 32)}),
        ("spectr", {"branching": (10,) * 400}),
        ("rsds", {"width": 100_000, "depth": 2}),
        ("dyspec", {"budget": 1025}),
        ("draftmodel", {"tokens": 3000}),
        ("bild", {"tokens": 3000}),
        ("s2d", {"tokens": 3000, "exits": (1,)}),
        ("jacobi", {"window": 100_000}),
        ("earlyexit", {"tokens": 3000}),
        ("dynamicexit", {"tokens": 3000}),
        ("aded", {"nodes": 3000}),
        ("lookup", {"tokens": 3000}),
        ("rasd", {"nodes": 3000}),
        ("recycling", {"children": (2000,), "successors": 2000}),
    ],
)
def test_drafts_of_too_many_nodes_are_refused(name: str, options: dict[str, Any]) -> None:
    needs = {"rsdc", "spectr", "rsds", "dyspec", "draftmodel", "bild", "s2d"}
    model = {"model": llama()} if name in needs else {}
    with pytest.raises(InputError, match=f"{name}: a draft has up to 1024 nodes"):
        drafter_registry.make(name, options | model)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("draftmodel", {"tokens": 900}),
        ("bild", {"tokens": 900, "fallback": 0.0}),
        ("s2d", {"tokens": 900, "exits": (1,), "threshold": 1.0}),
        ("rsdc", {"branching": (1,) * 900}),
        ("rsds", {"width": 1, "depth": 900}),
        ("earlyexit", {"tokens": 900}),
        ("dynamicexit", {"tokens": 900, "prior": 1.0}),
        ("rasd", {}),
    ],
)
def test_nothing_is_drafted_beyond_the_end(name: str, options: dict[str, Any]) -> None:
    if name == "rasd":
        options = {"base": DraftModel(model=llama(), tokens=900, temperature=0.0)}
    elif name not in ("earlyexit", "dynamicexit"):
        options = options | {"model": llama()}
    drafter, asked = drafter_registry.make(name, options), prompts([5, 4])
    usual: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    got = generate(llama(), asked, drafter=drafter, **usual)
    assert torch.equal(got.sequences, llama().generate(**asked, **usual))
    assert 0 < got.stats.drafter_forwards < 30


def test_jacobi_guesses_no_further_than_the_end() -> None:
    drafter = drafter_registry.build("jacobi(window=900)")
    got = generate(llama(), prompts([5, 4]), drafter=drafter, max_new_tokens=5, do_sample=True)
    assert got.stats.drafted <= 2 * (3 + 2 + 1)


def test_options_that_make_no_processors_are_refused() -> None:
    with pytest.raises(InputError, match="options of generate cannot be used"):
        ours(exponential_decay_length_penalty=(1, 1.5))


IDS = prompts([5])["input_ids"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**64}, "seeds are numbers of 64 bits"),
        ({"seed": None}, "seed must be an int or a list, each an int, got None"),
        ({"seed": "ab"}, "seed must be an int"),
        ({"seed": 1.5}, "seed must be an int"),
        ({"seed": torch.tensor([1])}, "seed must be an int"),
        ({"inputs": None}, "inputs are what the model's processor returned, got None"),
        ({"inputs": IDS}, "inputs are what the model's processor returned"),
        ({"inputs": {"input_ids": IDS.tolist()}}, "a tensor"),
        ({"inputs": {"input_ids": IDS.float()}}, "must be whole numbers"),
        ({"inputs": {"input_ids": IDS + 24}}, "input_ids must be from 0 to 23, got"),
        ({"inputs": {"input_ids": -IDS - 1}}, "input_ids must be from 0 to 23, got"),
        ({"inputs": {"input_ids": IDS, "foo": 3}}, r"not used by the model: \['foo'\]"),
        ({"guidance_scale": 2.0, "negative": {"input_ids": IDS, "foo": 3}}, "not used by"),
        ({"guidance_scale": 2.0, "negative": {}}, "need input_ids"),
        ({"negative": {"input_ids": IDS}}, "negative prompts are for guidance"),
        ({"drafter": None}, "drafter must be Drafter or a string, got None"),
        ({"drafter": DraftModel}, "drafter must be Drafter or a string, got <class"),
        ({"verifier": int}, "verifier must be Verifier or a string or None"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an int, got 2.5"),
        ({"min_new_tokens": 2.5}, "min_new_tokens must be an int, got 2.5"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(
    options: dict[str, Any], message: str
) -> None:
    known = {"inputs": prompts([5]), "drafter": "lookup", "max_new_tokens": 4, "do_sample": False}
    with pytest.raises(InputError, match=message) as caught:
        generate(llama(), **(known | options))
    assert "\n" not in str(caught.value)


def test_a_draft_model_of_one_layer_has_no_exits() -> None:
    with pytest.raises(InputError, match="s2d: the draft model has one layer"):
        drafter_registry.make("s2d", {"model": llama(layers=1), "exits": (1,)})
