"""Rules against reference vectors, where MMTOK_GOLDEN names a folder of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok.decoding import DraftTree, Target, lossy, rules, warp
from mmtok.decoding.base import total_variation
from mmtok.decoding.options import processors, settings
from mmtok.decoding.verifiers.chain import Chain
from mmtok.decoding.verifiers.gsd import GSD
from mmtok.decoding.verifiers.lantern import Lantern
from mmtok.decoding.verifiers.typical import Typical
from tests.decoders import llama
from tests.golden import GOLDEN, needs_golden

pytestmark = needs_golden
Values = dict[str, Tensor]


def cases(name: str) -> Iterator[tuple[Values, Values, dict[str, Any]]]:
    """Inputs, outputs and parameters of every case."""
    from safetensors import safe_open

    with safe_open(GOLDEN / "decoding" / f"{name}.safetensors", "pt") as file:
        meta = file.metadata()
        keys = list(file.keys())
        for i in range(len({key.split(".")[0] for key in keys})):
            parts = []
            for part in ("input", "output"):
                head = f"case{i}.{part}."
                found = {k[len(head) :]: file.get_tensor(k) for k in keys if k.startswith(head)}
                parts.append(found)
            yield parts[0], parts[1], json.loads(meta.get(f"case{i}.params", "{}"))


def first_hit(accept: Tensor, u: Tensor) -> int:
    return next((i for i, (a, v) in enumerate(zip(accept, u, strict=True)) if v < a), -1)


def close(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)


def test_recursive():
    for x, y, params in cases("rrs_chain"):
        order = (x["q"].log() + x["gumbel"]).argsort(descending=True)[: params["k"]]
        assert torch.equal(order, y["order"])
        level = rules.recursive(x["p"], order, x["q"])
        close(level.accept, y["accept_prob"], 1e-12)
        close(level.rest, y["p_chain"][-1], 1e-12)
        close(level.law(order), y["law_given_order"], 1e-12)
        assert first_hit(level.accept, x["u"]) == int(y["accepted"])


def test_kseq():
    for x, y, _ in cases("kseq"):
        k = len(x["drafts"])
        rho, beta = rules.kseq_rho(x["p"], x["q"], k)
        assert rho == pytest.approx(float(y["rho"]), rel=1e-9)
        assert beta == pytest.approx(float(y["beta"]), abs=1e-9)
        level = rules.kseq(x["p"], x["drafts"], x["q"])
        close(level.accept, y["accept_prob"][x["drafts"]], 1e-9)
        close(level.rest, y["residual"], 1e-9)
        assert first_hit(level.accept, x["u"]) == int(y["accepted"])


def test_deterministic():
    for x, y, _ in cases("det_tree"):
        level = rules.deterministic(x["p"], x["siblings"])
        close(level.accept, y["accept_prob"], 1e-12)
        close(level.rest, y["emit_dist"], 1e-12)
        close(level.law(x["siblings"])[x["siblings"]], y["law_reach"], 1e-12)
        assert first_hit(level.accept, x["u"]) == int(y["accepted"])


def test_neighbour_table():
    for x, y, _ in cases("lantern_table"):
        size = len(x["codebook"])
        assert torch.equal(lossy.neighbours(x["codebook"], size - 1), y["neighbours"])


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_lantern(mode):
    for x, y, params in cases(f"lantern_accept_{mode}"):
        near, delta, k = x["neighbours"], params["delta"], params["k"]
        q = x["q"] if mode == "static" else None
        tested = int((~y["accept_prob"].isnan()).sum())
        level = lossy.lantern(x["p"], x["siblings"], q, near[:, :k], delta)
        close(level.accept[:tested], y["accept_prob"][:tested], 1e-10)
        assert first_hit(level.accept, x["u"]) == int(y["accepted"])
        if "final_p" in y:
            close(level.rest, y["final_p"], 1e-10)
        lent = lossy.borrowed(x["p"], near[:, :k], x["siblings"][0], delta)
        assert len(lent) == int(y["m_star"][0])


@pytest.mark.parametrize("name", ["sjd_step", "gsd_step"])
def test_window(name):
    for x, y, _ in cases(name):
        for i in range(1, len(x["tokens"])):
            p, q, token = x["p"][i - 1], x["q"][i], x["tokens"][i]
            if name == "sjd_step":
                level = rules.chain(p, token[None], q)
            else:
                # ranks are those of the logits, which order tokens of probability zero as well
                far = x["dist"][token] >= 0.5
                mask = lossy.group(p, int(token), 7, 0.15, far)
                level = lossy.grouped(p, q, mask)
            close(level.accept[0], y["accept_prob"][i], 1e-10)
        reached = int(y["n_accepted"])
        if "residual" in y and reached + 1 < len(x["tokens"]):
            close(rules.residual(x["p"][reached], x["q"][reached + 1]), y["residual"], 1e-10)


def test_typical_prefixes():
    for x, y, params in cases("typical_accept"):
        logits = x["logits"][:, :-1] / params["temperature"]
        p = logits.softmax(-1)
        token = x["candidates"][:, 1:]
        threshold = lossy.typical_threshold(p, params["eps"], params["alpha"])
        close(threshold, y["threshold"], 1e-10)
        ok = p.gather(-1, token[..., None])[..., 0] > threshold
        assert torch.equal(ok.long().cumprod(1).sum(1), y["accept_length_per_path"])
        for path, row, drafts in zip(ok, p, token, strict=True):
            for accepted, at, draft in zip(path, row, drafts, strict=True):
                level = lossy.typical(at, draft[None], params["eps"], params["alpha"])
                assert bool(level.accept[0]) == bool(accepted)


def lossy_rules(x: Values, params: dict[str, Any]) -> dict[str, Any]:
    """Name to rule: a verifier, or a function of p, q and the sibling."""
    near, k = x["neighbours"], params["k"]
    far = x["dist"] >= params["gsd_dist_threshold"]
    ranks, gap = params["G"], params["gsd_p_threshold"]

    def gated(p: Tensor, sibling: Tensor, q: Tensor) -> rules.Level:
        at = int(sibling)
        return lossy.grouped(p, q, lossy.group(p, at, ranks, gap, far[at]))

    made: dict[str, Any] = {"typical": Typical(), "exact": Chain(), "gsd_gate_off": GSD()}
    for delta in (0.1, 0.4, 2.0, 5.0):
        made[f"lantern_{delta}_rec"] = Lantern(near=near[:, :k], delta=delta)
        wider = near[:, : k + 1]
        made[f"lantern_{delta}_repo"] = Lantern(near=wider, delta=delta, published=True)
    return {**made, "gsd_gate_on": gated}


def test_law_and_distance_of_lossy_rules():
    for x, y, params in cases("lossy_tv"):
        p, q, named = x["p"], x["q"], lossy_rules(x, params)
        assert {key.rsplit(".", 1)[0] for key in y} == set(named)
        for name, rule in named.items():
            judge = rule if callable(rule) else rule.level
            law, accepted = torch.zeros_like(p), 0.0
            for token in q.nonzero():
                level = judge(p, token, q)
                law += q[token] * level.law(token)
                accepted += float(q[token] * level.accept)
            close(law, y[f"{name}.law"], 1e-10)
            assert accepted == pytest.approx(float(y[f"{name}.accept"]), abs=1e-10), name
            tv = float((law - p).abs().sum() / 2)
            assert tv == pytest.approx(float(y[f"{name}.tv"]), abs=1e-10), name
            if not callable(rule):
                assert total_variation(rule, p, q) == pytest.approx(tv, abs=1e-12)
                assert rule.lossless == (name == "exact")


def test_coupling_of_guesses_keeps_their_law():
    for x, y, _ in cases("mc_coupling"):
        p, q = x["p"], x["q"]
        law = torch.zeros_like(p)
        for token in q.nonzero():
            level = rules.chain(p, token, q)
            close(level.accept[0], y["keep_prob"][token[0]], 1e-12)
            close(level.rest, y["residual"], 1e-12)
            law += q[token] * level.law(token)
        close(law, y["marginal"], 1e-12)


def test_guided_logits_are_warped_once():
    for x, y, params in cases("cfg_warp"):
        config = {"do_sample": True, **{k: params[k] for k in ("temperature", "top_k", "top_p")}}
        model = llama(vocabulary=64)
        warpers = processors(model, settings(model, None, config, 3), [1, 2, 0], None)
        target = Target(model, guidance_scale=params["scale"])
        guided = target.guide(torch.stack([x["cond"], x["uncond"]]))[0]
        for at, want in enumerate(y["probs"]):
            row = warp.rows(guided[at : at + 1], DraftTree.root(0), [1, 2, 0], warpers, True)
            close(row(0), want, 1e-6)
