"""A prompt without visual tokens comes out as if no reducer were there, whatever is beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok import Pipeline, reduced
from mmtok.accounting.analytic import kv_bytes
from mmtok.accounting.flops import count_flops
from mmtok.accounting.rows import analytic_flops
from mmtok.models.lvlm import LVLM
from tests.conftest import picture, tiny_model

TEXT = "only text here, please talk to me about it at some length"
DETAIL: dict[str, Any] = {
    "max_new_tokens": 5,
    "min_new_tokens": 5,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}
SPECS = [
    "knorm(keep=0.5)",
    "a2sf(keep=17)",
    "corematching(keep=0.5)",
    "sentencekv(keep=0.9, read=0.3, start=1, recent=1, window=2, threshold=0)",
    "sentencekv(keep=0.9, read=0.3, window=2, threshold=0, scope='visual')",
    "mustdrop(keep=0.4, trim_early=True)",
]


def loaded(family: str) -> LVLM:
    model, processor = tiny_model(family)
    return LVLM(model=model, processor=processor, name=family, config=model.config)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("spec", SPECS)
def test_text_beside_an_image_is_left_alone(family: str, spec: str) -> None:
    if family == "qwen2_5_vl" and spec.startswith("mustdrop"):
        pytest.skip("needs CLS attention")
    lvlm = loaded(family)
    alone = lvlm.inputs_batch([(None, None, TEXT)])
    both = lvlm.inputs_batch([([picture(0, 80, 60)], None, "x"), (None, None, TEXT)])
    want = lvlm.model.generate(**alone, **DETAIL)
    with reduced(lvlm.model, spec):
        got = lvlm.model.generate(**both, **DETAIL)
    assert torch.equal(got.sequences[1, -5:], want.sequences[0, -5:])
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a[1], b[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["corematching(keep=0.5)", "knorm(keep=0.5)"])
def test_the_account_knows_of_it(spec: str) -> None:
    lvlm = loaded("llava")
    both = lvlm.inputs_batch([([picture(0, 80, 60)], None, "x"), (None, None, TEXT)])
    with count_flops() as counted:
        done = Pipeline(lvlm, spec).one_pass(both, counted, max_new_tokens=4, do_sample=False)
    said = analytic_flops(lvlm, done)["decode"]
    assert said == pytest.approx(counted.by_stage["decode"], rel=0.01)
    config = lvlm.config.get_text_config()
    assert 2 * kv_bytes(config, done.cache_lengths(), "float32") == done.kv_bytes[0]
