"""What a shortened KV cache refuses, what it leaves behind, and how else it may be fed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from mmtok import InputError, Pipeline, plan, reduced
from mmtok.accounting.analytic import kv_bytes
from mmtok.accounting.flops import FlopCount, count_flops
from mmtok.models.cache_name import cache_in, cache_name
from mmtok.models.cache_seam import CacheSeam
from mmtok.models.lvlm import LVLM
from mmtok.models.reduction import Reduction
from mmtok.pruning import build
from mmtok.pruning.base import Reducer
from mmtok.pruning.cache import CachePolicy
from tests.conftest import batch, cache_arguments, tiny_model
from tests.test_cache import OPTIONS, Leaving, SpiedSentences, agree, short_layers


@pytest.mark.parametrize("name", cache_arguments()[:2])
def test_several_tokens_at_once_equal_one_by_one(name: str) -> None:
    """A user's own loop may feed more than one token to a shortened cache."""
    for family in ("llava", "llava_onevision"):
        model, _ = tiny_model(family)
        more = torch.tensor([[40, 41, 42]] * 2)
        last = []
        with reduced(model, "a2sf(keep=9, recent=2)"):
            for pieces in (more.split(3, dim=1), more.split(1, dim=1)):
                inputs = batch(family, "image")
                out, mask = model(**inputs), inputs["attention_mask"]
                for piece in pieces:
                    mask = torch.nn.functional.pad(mask, (0, piece.shape[1]), value=1)
                    out = model(input_ids=piece, attention_mask=mask, **{name: cache_in(out)})
                last.append(out.logits[:, -1])
        torch.testing.assert_close(last[0], last[1], rtol=1e-5, atol=1e-5)


def test_a_forward_without_cache_is_the_stock_one() -> None:
    model, _ = tiny_model("llava")
    want = model(**batch("llava", "image")).logits
    with reduced(model, "a2sf(keep=9, recent=2)"):
        assert torch.equal(model(**batch("llava", "image"), use_cache=False).logits, want)
        assert torch.equal(model(**batch("llava", "image")).logits, want)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"num_beams": 2}, "beams and several return sequences"),
        ({"use_cache": False}, "needs use_cache=True"),
        ({"cache_implementation": "static"}, "needs a dynamic cache"),
        ({"prefill_chunk_size": 8}, "filled in one prefill"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], why: str) -> None:
    model, _ = tiny_model("llava")
    with reduced(model, "knorm(keep=9)"), pytest.raises(InputError, match=why):
        model.generate(**batch("llava", "image"), max_new_tokens=3, **options)


def test_what_cannot_work_together_is_refused_when_built() -> None:
    model, _ = tiny_model("llava")
    with pytest.raises(InputError, match="only one reducer of a pipeline can evict"):
        Reduction(model, build(["knorm(keep=9)", "snapkv(keep=9, window=2)"]))
    Reduction(model, build(["knorm(keep=9)", "snapkv(keep=1.0)"]))  # keeps all: no second policy
    model.set_attn_implementation({"text_config": "eager"})
    try:
        with pytest.raises(InputError, match="works with SDPA, not 'eager'"):
            Reduction(model, build("knorm(keep=9)"))
    finally:
        model.set_attn_implementation({"text_config": "sdpa"})


def test_a_decoder_with_sliding_windows_alone_is_refused() -> None:
    sliding = SimpleNamespace(sliding_window=8, layer_types=None)
    decoder = SimpleNamespace(config=sliding, layers=[None, None])
    with pytest.raises(InputError, match="every decoder layer has a sliding window"):
        CacheSeam(decoder, CachePolicy, lambda _: None, FlopCount())


@pytest.mark.parametrize("spec", ["a2sf(keep=9, recent=2)", "expectedattention(keep=9)"])
def test_half_precision_chooses_in_fp32(spec: str) -> None:
    model = copy.deepcopy(tiny_model("qwen2_5_vl")[0]).to(torch.bfloat16)
    for reduce in (spec, SpiedSentences()):
        with reduced(model, reduce) as reduction:
            out = model.generate(**batch("qwen2_5_vl", "image"), **OPTIONS)
        layer = cache_in(out).layers[0]
        assert layer.keys.dtype == layer.values.dtype == torch.bfloat16
        assert reduction.score_flops > 0


def test_nothing_is_left_after_an_exception() -> None:
    model, _ = tiny_model("llava")

    def hooks() -> list[int]:
        return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]

    class Stop(CachePolicy):
        reads_queries = True

        def count(self, layer: int, entries: int, visual: int) -> int:
            return 2

        def keep(self, entries: Any) -> Any:
            raise RuntimeError("stop")

    @dataclass(frozen=True, kw_only=True)
    class Stopping(Reducer):
        def in_cache(self, layers: int) -> CachePolicy | None:
            return Stop()

    before = hooks()
    with pytest.raises(RuntimeError, match="stop"), reduced(model, Stopping()):
        model.generate(**batch("llava", "image"), **OPTIONS)
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=200)
    with (
        reduced(model, "a2sf(keep=9, recent=2)"),
        pytest.raises(InputError, match="got StaticCache"),
    ):
        model(**batch("llava", "image"), **{cache_name(model): static})
    assert hooks() == before
    assert torch.overrides._len_torch_function_stack() == 0
    out = model.generate(**batch("llava", "image"), **OPTIONS)
    assert type(cache_in(out)) is DynamicCache
    assert {type(layer) for layer in cache_in(out).layers} == {DynamicLayer}


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_the_plan_foresees_short_caches(family: str) -> None:
    model, processor = tiny_model(family)
    lvlm = LVLM(model=model, processor=processor, name=family, config=model.config)
    inputs = batch(family, "image", rows=(0,))
    for spec in (
        "knorm(keep=0.3)",
        "a2sf(keep=5, scope='visual')",
        ["stride(keep=0.5)", "fastv(keep=0.5)", "a2sf(keep=12, recent=2)"],
        SpiedSentences(),
        Leaving(),
    ):
        with count_flops() as counted:
            done = Pipeline(lvlm, spec).one_pass(inputs, counted, max_new_tokens=4)
        visual = sum(n for _, n, _ in done.reduction.tokens)
        text = inputs["input_ids"].shape[1] - visual
        side = plan(model.config, reduce=spec, text_tokens=text, dtype="float32", new_tokens=4)
        rows = {row.stage: row for row in side.reduced.ledger.stages}
        config = model.config.get_text_config()
        assert kv_bytes(config, done.cache_lengths(), "float32") == done.kv_bytes[0]
        assert side.reduced.kv_bytes == done.kv_bytes[0] < side.baseline.kv_bytes
        assert rows["decode"].kv_bytes == done.kv_bytes[1]
        read = rows["decode"].flops_analytic
        assert counted.by_stage["decode"] <= read < side.baseline.ledger.stages[-1].flops_analytic


def test_text_alone_passes_through() -> None:
    model, _ = tiny_model("llava")
    ids = torch.arange(3, 40)[None]
    want = model.generate(input_ids=ids, **OPTIONS)
    with reduced(model, SpiedSentences()):
        model.generate(**batch("llava", "image"), **OPTIONS)
        got = model.generate(input_ids=ids, **OPTIONS)
    agree(got, want)
    assert not short_layers(cache_in(got))
