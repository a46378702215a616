"""A loop of one's own around a reduced model gives what `generate` gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from mmtok import reduced
from mmtok.models.cache_name import cache_in, cache_name
from mmtok.models.families import FAMILIES
from tests.conftest import batch, cache_arguments, tiny_model

DETAIL: dict[str, Any] = {
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


def loop(model: Any, inputs: dict[str, Any], tokens: Tensor, mask: bool) -> list[Tensor]:
    """(B, V) logits of each step, where `tokens` (B, n) are fed one by one."""
    out = model(**inputs, use_cache=True)
    logits, seen = [out.logits[:, -1]], inputs["attention_mask"]
    for token in tokens.split(1, dim=1):
        seen = pad(seen, (0, 1), value=1)
        more = {"attention_mask": seen} if mask else {}
        out = model(input_ids=token, **{cache_name(model): cache_in(out)}, **more)
        logits.append(out.logits[:, -1])
    return logits


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("spec", ["stride(keep=5)", "stride(keep=1.0)", "fastv(keep=0.5, layer=3)"])
@pytest.mark.parametrize("mask", [True, False])
def test_own_loop_equals_generate(family: str, spec: str, mask: bool) -> None:
    """Whatever ran before, and whether or not the loop passes a mask."""
    if mask and "qwen" in family and not spec.startswith("stride(keep=5"):
        pytest.skip("the stock model itself takes no mask in such a loop")
    model, _ = tiny_model(family)
    inputs = batch(family, "image", rows=(1,))
    with reduced(model, spec):
        want = model.generate(**inputs, **DETAIL)
    tokens = want.sequences[:, -4:-1]
    for before in ((0,), (0, 1), (1, 0)):
        model(**batch(family, "image", rows=before))
        with reduced(model, spec):
            got = loop(model, inputs, tokens, mask)
        for a, b in zip(got, want.logits, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_gives_what_a_dynamic_one_gives(family: str) -> None:
    """With masks that `generate` has made up, one for each kind of layer."""
    model, _ = tiny_model(family)
    with reduced(model, "stride(keep=5)"):
        want = model.generate(**batch(family, "image"), **DETAIL)
        got = model.generate(**batch(family, "image"), **DETAIL, cache_implementation="static")
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_padded_batch_in_a_loop(family: str) -> None:
    """Each row is as it is alone, padding of the user's and of the reduction's hidden."""
    model, _ = tiny_model(family)
    both = batch(family, "image")
    tokens = torch.tensor([[40, 41, 42], [50, 51, 52]])
    with reduced(model, "stride(keep=5)"):
        for mask in (True, False):
            got = loop(model, both, tokens, mask)
            for row in (0, 1):
                alone = loop(model, batch(family, "image", rows=(row,)), tokens[[row]], mask)
                for a, b in zip(got, alone, strict=True):
                    torch.testing.assert_close(a[row], b[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("spec", ["stride(keep=5)", "fastv(keep=0.5, layer=3)", "knorm(keep=0.5)"])
@pytest.mark.parametrize("name", cache_arguments()[:2])
def test_a_second_turn_in_one_call(family: str, spec: str, name: str) -> None:
    """New text behind a generated answer, as if it had been fed token by token."""
    model, _ = tiny_model(family)
    inputs = batch(family, "image", rows=(0,))
    with reduced(model, spec):
        first = model.generate(**inputs, **DETAIL)
        more = torch.cat([first.sequences[:, -1:], torch.tensor([[60, 61, 62]])], dim=1)
        got = model(input_ids=more, **{name: cache_in(first)}).logits[:, -1]
        want = loop(model, inputs, torch.cat([first.sequences[:, -4:-1], more], dim=1), False)
    torch.testing.assert_close(got, want[-1], rtol=1e-4, atol=1e-4)
