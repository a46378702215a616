"""Greedy decoding of a real language model with drafts: the tokens of plain `generate`."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks import smollm2
from mmtok.decoding import drafter_registry, generate

pytestmark = pytest.mark.skipif(bool(smollm2.missing()), reason=smollm2.missing())

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
PROMPTS = (
    "Repeat word for word: The red tram climbs the hill, and the red tram comes down again.",
    "Name three animals of the sea.",
)
OPTIONS = {"jacobi": {"window": 4}, "s2d": {"exits": (15,)}}


@cache
def loaded() -> tuple[Any, Any]:
    return smollm2.load()


@cache
def plain(prompt: str) -> list[int]:
    model, tokenizer = loaded()
    inputs = smollm2.asked(tokenizer, prompt)
    return model.generate(**inputs, **GREEDY)[0].tolist()


def drafter(name: str) -> Any:
    """With the target as its own draft model, where the drafter wants one."""
    made = drafter_registry.get(name)
    wants_model = "model" in {field.name for field in fields(made)}
    return made(**OPTIONS.get(name, {}), **({"model": loaded()[0]} if wants_model else {}))


@pytest.mark.parametrize("name", drafter_registry.names())
def test_tokens_are_those_of_plain_decoding(name: str) -> None:
    model, tokenizer = loaded()
    for prompt in PROMPTS:
        got = generate(
            model, smollm2.asked(tokenizer, prompt), drafter=drafter(name), **GREEDY
        ).sequences
        assert got[0].tolist() == plain(prompt)


def test_rows_of_a_ragged_batch_give_the_tokens_of_each_alone() -> None:
    model, tokenizer = loaded()
    rows = [smollm2.asked(tokenizer, prompt)["input_ids"][0] for prompt in PROMPTS]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.arange(width) >= width - torch.tensor([[len(row)] for row in rows])
    got = generate(
        model, {"input_ids": ids, "attention_mask": mask.long()}, drafter="lookup", **GREEDY
    )
    for row, prompt, out in zip(rows, PROMPTS, got.sequences.tolist(), strict=True):
        want = plain(prompt)[len(row) :]
        assert out[width:][: len(want)] == want
