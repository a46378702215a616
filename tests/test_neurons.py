"""Skipping neurons in decode steps: equal to zeroing them, less work, nothing left behind."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from mmtok import InputError, Pipeline, reduced
from mmtok.accounting.flops import count_flops
from mmtok.accounting.plan import plan
from mmtok.accounting.rows import analytic_flops
from mmtok.models.lvlm import LVLM
from mmtok.models.reduction import Reduction
from mmtok.pruning import CoreMatching
from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import DecoderStage
from mmtok.pruning.methods.corematching import above_knee, prompt_core, token_cores
from mmtok.pruning.neurons import NeuronStage
from tests.conftest import batch, tiny_model
from tests.test_decoder_methods import SEEDS, best, prompt

DETAIL: dict[str, Any] = {
    "max_new_tokens": 4,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}


@dataclass(frozen=True, kw_only=True)
class Loudest(Reducer):
    """Compute the neurons with the largest summed activation."""

    def in_feedforward(self) -> NeuronStage:
        return NeuronStage(
            share=0.3, rule=lambda x, count: x.sum(0).topk(count).indices.sort().values
        )


@dataclass(frozen=True, kw_only=True)
class SameTokens(Reducer):
    """One stage of another reducer, and all neurons."""

    stage: DecoderStage

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        return [self.stage]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "smolvlm"])
@pytest.mark.parametrize("spec", ["loudest", "corematching"])
def test_it_equals_zeroing_the_others(family: str, spec: str) -> None:
    """In a padded batch; each prompt has neurons of its own."""
    model, _ = tiny_model(family)
    inputs = batch(family, "image")
    layers = model.get_decoder().layers
    reducers: list[Any] = [Loudest()] if spec == "loudest" else [CoreMatching(keep=0.5, beta=0.3)]
    with reduced(model, reducers) as reduction:
        got = model.generate(**inputs, **DETAIL)
        assert reduction.seams.neurons is not None
        cores = [core[0] for core in reduction.seams.neurons.cores if core is not None]
    width = model.config.get_text_config().intermediate_size
    assert [len(core[0]) for core in cores] == [math.floor(0.3 * width + 0.5)] * len(layers)
    assert not torch.equal(cores[0][0], cores[0][1])
    with ExitStack() as stack:
        for layer, core in zip(layers, cores, strict=True):
            gate = layer.mlp.gate_proj.weight
            mask = torch.stack([(gate[:, None] == rows).all(2).any(1) for rows in core])
            assert (mask.sum(1) == core.shape[1]).all()

            def silence(module: Any, args: Any, mask: Any = mask) -> Any:
                return (args[0] * mask[:, None],) if args[0].shape[1] == 1 else None

            stack.callback(layer.mlp.down_proj.register_forward_pre_hook(silence).remove)
        if spec == "corematching":
            stack.enter_context(reduced(model, [SameTokens(stage=reducers[0].in_decoder(4)[0])]))
        want = model.generate(**inputs, **DETAIL)
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_batch_equals_its_prompts_one_by_one() -> None:
    model, _ = tiny_model("llava")
    chosen = []
    for rows in ((0, 1), (0,), (1,)):
        with reduced(model, "corematching(keep=0.5)") as reduction:
            model.generate(**batch("llava", "image", rows=rows), **DETAIL)
            assert reduction.seams.neurons is not None
            chosen.append([core[0] for core in reduction.seams.neurons.cores if core is not None])
    for together, first, second in zip(*chosen, strict=True):
        assert torch.equal(together, torch.cat([first, second]))


def test_the_account_knows_the_neurons() -> None:
    """Counted and analytic FLOPs of decode steps, the plan, and the weights read."""
    model, processor = tiny_model("llava")
    lvlm = LVLM(model=model, processor=processor, name="llava", config=model.config)
    decode = {}
    for beta in (1.0, 0.25):
        pipeline = Pipeline(lvlm, CoreMatching(keep=0.3, beta=beta))
        with count_flops() as counted:
            done = pipeline.one_pass(batch("llava", "image"), counted, **DETAIL)
        decode[beta] = counted.by_stage["decode"]
        assert analytic_flops(lvlm, done)["decode"] == pytest.approx(decode[beta], rel=0.01)
    layers, width, hidden = 4, 128, 64
    assert decode[1.0] - decode[0.25] == 2 * 3 * layers * 6 * hidden * width * 3 // 4
    spared = done.reduction.seams.neurons.spared_bytes  # type: ignore[union-attr]
    assert spared == layers * 3 * hidden * width * 4 * (4 - 2) // 4  # two prompts hold a quarter
    costs = [
        plan("llava-1.5-7b", reduce=f"corematching(keep=0.3, beta={beta})", new_tokens=2)
        for beta in (1.0, 0.5)
    ]
    full, half = (cost.reduced.ledger.stages[-1].flops_analytic for cost in costs)
    assert full is not None
    assert half is not None
    assert full - half == 32 * 6 * 4096 * 11008 // 2


def test_nothing_is_left_behind() -> None:
    model, _ = tiny_model("llava")
    want = model.generate(**batch("llava", "image"), **DETAIL)
    with reduced(model, Loudest()):
        model.generate(**batch("llava", "image"), **DETAIL)
        assert all("forward" in vars(layer.mlp) for layer in model.get_decoder().layers)
    with pytest.raises(RuntimeError, match="stop"), reduced(model, Loudest()):
        raise RuntimeError("stop")
    for layer in model.get_decoder().layers:
        assert "forward" not in vars(layer.mlp)
        assert not layer.mlp.down_proj._forward_pre_hooks
    got = model.generate(**batch("llava", "image"), **DETAIL)
    assert all(torch.equal(a, b) for a, b in zip(got.logits, want.logits, strict=True))
    with reduced(model, Loudest()):
        ids = torch.arange(3, 9)[None]
        model.generate(**batch("llava", "image"), **DETAIL)
        text = model.generate(input_ids=ids, **DETAIL)
    assert torch.equal(text.sequences, model.generate(input_ids=ids, **DETAIL).sequences)


def test_one_reducer_chooses_neurons() -> None:
    with pytest.raises(InputError, match="only one reducer"):
        Reduction(tiny_model("llava")[0], [Loudest(), Loudest()])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_corematching(seed: int, rho: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen = prompt(seed, activation=torch.randn(60, 40, generator=generator))
    seen.text = seen.text[seen.text > 2]  # the first three places are padding
    assert seen.activation is not None
    x = seen.activation.double().tolist()
    cores = []
    for line in x:
        floor = max(sorted(line)[math.ceil(rho * 40) - 1] if rho else 0.0, 0.0)
        cores.append({i for i, v in enumerate(line) if v > floor})
    often = [float(sum(n in cores[place] for place in range(3, 60))) for n in range(40)]
    core = set(best(often, 12))
    score = [float(len(core & cores[place])) for place in range(6, 46)]
    reducer = CoreMatching(keep=10, rho=rho, beta=0.3)
    (stage,) = reducer.in_decoder(32)
    assert stage.layer == 6
    assert stage.rule(seen).indices[0].tolist() == best(score, 10)
    firing = token_cores(seen.activation, rho)
    assert prompt_core(firing[3:], 12).tolist() == sorted(core)
    (repo,) = CoreMatching(keep=10, rho=rho, beta=0.3, compat="repo").in_decoder(32)
    shared = [
        float(sum(x[place][n] > 0 and x[55][n] > 0 for n in range(40))) for place in range(6, 46)
    ]
    assert repo.rule(seen).indices[0].tolist() == best(shared, 10)


def test_the_knee() -> None:
    score = torch.tensor([9, 1, 8, 2, 2, 1, 1, 3])  # falling: 9 8 3 2 2 1 1 1, farthest is the 3
    assert above_knee(score, strict=False).tolist() == [0, 2, 7]
    assert above_knee(score, strict=True).tolist() == [0, 2]
    for equal in (torch.ones(5), torch.ones(1)):
        for strict in (False, True):
            assert above_knee(equal, strict=strict).tolist() == list(range(len(equal)))
    activation = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    seen, kept = prompt(0, activation=activation), {}
    for knee in ("strict", "inclusive"):
        for k in (3, 40):
            (stage,) = CoreMatching(keep=k, knee=knee, rho=0.5).in_decoder(8)  # type: ignore[arg-type]
            kept[knee, k] = len(stage.rule(seen).indices[0])
    assert kept["strict", 3] <= 3
    assert kept["strict", 40] < kept["inclusive", 40] < 40


def test_keep_all_skips_nothing_and_bad_arguments_are_named() -> None:
    assert CoreMatching(keep=1.0).in_feedforward() is None
    assert CoreMatching(keep=0.5, beta=1.0).in_feedforward() is None
    for arguments, name in [
        ({"rho": 1}, "rho must be"),
        ({"beta": 0}, "beta must be"),
        ({"knee": "x"}, "knee must be"),
        ({"compat": "x"}, "compat must be"),
    ]:
        with pytest.raises(InputError, match=name):
            CoreMatching(**arguments)  # type: ignore[arg-type]


def test_a_forward_of_the_users_own_is_given_back() -> None:
    """As libraries that move weights about set it, on the module itself."""
    model, _ = tiny_model("llava")
    network, calls = model.get_decoder().layers[1].mlp, []
    stock = network.forward

    def own(x: Any) -> Any:
        calls.append(len(x))
        return stock(x)

    network.forward = own
    try:
        with reduced(model, Loudest()):
            model.generate(**batch("llava", "image"), **DETAIL)
        assert vars(network).get("forward") is own
        assert calls
    finally:
        del network.forward
    with reduced(model, Loudest()):
        pass
    assert "forward" not in vars(network)
