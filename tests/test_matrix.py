"""Every registered reducer on every family: exactness, bytes, FLOPs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok import InputError, Pipeline, reduced
from mmtok.accounting.analytic import kv_bytes
from mmtok.accounting.flops import count_flops
from mmtok.accounting.rows import analytic_flops
from mmtok.models.lvlm import LVLM
from tests.conftest import CASES, batch, tiny_model
from tests.matrix import REDUCERS

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
ROWS = [
    pytest.param(case, spec, id=f"{case[0]}-{case[1]}-{spec}")
    for case in CASES
    for name, (specs, refuses) in REDUCERS.items()
    for spec in specs
    if not {case[0], "-".join(case)} & refuses
]
KEEPING = [row for row in ROWS if "{keep}" in str(row.values[1])]


@pytest.mark.parametrize(("case", "spec"), KEEPING)
def test_keep_all_is_bit_identical(case: tuple[str, str], spec: str) -> None:
    model, _ = tiny_model(case[0])
    want = model.generate(
        **batch(*case), **GREEDY, output_logits=True, return_dict_in_generate=True
    )
    with reduced(model, spec.format(keep=1.0)):
        got = model.generate(
            **batch(*case), **GREEDY, output_logits=True, return_dict_in_generate=True
        )
    assert torch.equal(got.sequences, want.sequences)
    assert all(torch.equal(a, b) for a, b in zip(got.logits, want.logits, strict=True))


@pytest.mark.parametrize(("case", "spec"), ROWS)
def test_the_account_is_exact(case: tuple[str, str], spec: str) -> None:
    """KV bytes as predicted from token counts; FLOPs of each stage within 1% of the counter."""
    model, processor = tiny_model(case[0])
    lvlm = LVLM(model=model, processor=processor, name=case[0], config=model.config)
    pipeline = Pipeline(lvlm, spec.format(keep=0.3))
    inputs = batch(*case)
    full = inputs["input_ids"].shape[1]
    with count_flops() as counted:
        done = pipeline.one_pass(inputs, counted, **GREEDY)
    assert min(done.cache_lengths()) < full or "{keep}" not in spec
    assert max(done.layer_lengths()) <= full
    for stage, new in enumerate((0, done.new_tokens - 1)):
        held = [n + new for n in done.cache_lengths()]
        predicted = kv_bytes(model.config.get_text_config(), held, "float32")
        assert done.kv_bytes[stage] == len(inputs["input_ids"]) * predicted
    analytic = analytic_flops(lvlm, done)
    assert counted.by_stage.keys() <= analytic.keys()
    for stage in analytic:
        assert analytic[stage] == pytest.approx(counted.by_stage.get(stage, 0), rel=0.01), stage
    assert analytic["prefill"] > 0


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, family) for name, (_, refuses) in REDUCERS.items() for family in sorted(refuses)],
)
def test_what_does_not_fit_is_refused_with_the_reason(name: str, family: str) -> None:
    """When the model is opened, or where only the inputs tell, when it runs."""
    family, _, kind = family.partition("-")
    model, _ = tiny_model(family)
    why = rf"{name} does not fit {family}: |{name} needs \w+, which {family} does not have"
    why += rf"|does not fit clips of {family}: "
    why += rf"|the first \d+ layers of {family} add visual features of their own"
    with (
        pytest.raises(InputError, match=why),
        reduced(model, REDUCERS[name][0][0].format(keep=0.3)),
    ):
        model.generate(**batch(family, kind or "image"), **GREEDY)
