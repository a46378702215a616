"""Reference vectors of image and frame-budget methods; see test_golden.py."""

from __future__ import annotations

import pytest
import torch

from mmtok.models.families import cells
from mmtok.pruning import CDPruner, PruMerge, QuoTA, VisualTokens
from mmtok.pruning.determinant import greedy_determinant
from mmtok.pruning.methods.quota import capped_in_one_pass
from mmtok.pruning.rank import apportion
from tests.test_golden import cases, known, pytestmark  # noqa: F401 (the mark skips this file too)


def test_cdpruner() -> None:
    """The reference compares CLIP's embeddings, so these stand in for relevance."""
    reducer = CDPruner(compat="repo")
    for params, tensors in cases("cdpruner"):
        text = tensors["input.text_embeds"]
        for item, features in enumerate(tensors["input.features"]):
            r = reducer.relevance(text, tensors["input.image_embeds"][item])
            got = greedy_determinant(features, r, params["T"]).sort().values
            if params["batch"] == 1:
                torch.testing.assert_close(r, tensors["output.relevance"][item])
                assert torch.equal(got, tensors["output.indices"][item])
            else:  # the reference takes its extremes over the batch
                assert len(got.unique()) == params["T"]
                assert float(r.max()) == pytest.approx(1, abs=1e-4)


def test_prumerge() -> None:
    for params, tensors in cases("prumerge"):
        for item in range(params["batch"]):
            q, keys = tensors["input.q_proj"][item], tensors["input.k_proj"][item]
            attention = (q @ keys.T * q.shape[1] ** -0.5).softmax(-1)[0, 1:]
            tokens = known(tensors, item, cls_attention=attention[None], keys=keys[None, 1:])
            reducer = PruMerge(keep=0.9, adaptive=True, compat="repo")
            selection = reducer.select(tokens)
            chosen, extra = reducer.selected(attention, 60)
            if params["batch"] > 1:  # the reference takes its quartiles over the batch
                assert 1 <= len(chosen) < 20
                continue
            order = tensors["output.selected"][item]
            assert torch.equal(chosen, order.sort().values)
            got, want = selection.apply(tokens.features)[0], tensors["output.tokens"][item]
            slots = selection.indices[0]
            own = torch.searchsorted(slots, torch.cat([order, extra]))
            torch.testing.assert_close(got[own], want.to(got), rtol=1e-4, atol=1e-5)


def test_quota_waterfill() -> None:
    for params, tensors in cases("quota_waterfill_formula"):
        caps = [params["cap_per_frame"]] * params["frames"]
        total = min(params["budget"], sum(caps))
        got = apportion(tensors["input.weights"].tolist(), caps, total)
        assert got == tensors["output.tokens"].tolist()


def test_quota_scale() -> None:
    """The released shares under compat="repo"; the default's add up and keep to the cap."""
    total = 10**7
    for params, tensors in cases("quota_scale"):
        weights, cap = tensors["input.weights"].tolist(), params["cap"]
        released = capped_in_one_pass(weights, [cap] * len(weights))
        torch.testing.assert_close(
            torch.tensor(released).double(), tensors["output.weights"], rtol=1e-6, atol=1e-9
        )
        got = torch.tensor(apportion(weights, [round(cap * total)] * len(weights), total)) / total
        assert float(got.sum()) == pytest.approx(1)
        assert float(got.max()) <= cap + 1e-6
        if max(weights) <= cap:
            torch.testing.assert_close(got, torch.tensor(released), rtol=0, atol=2 / total)


def test_quota_compress() -> None:
    compress = {"v1": "bilinear", "v2": "pool", "v3": "index"}
    for params, tensors in cases("quota_compress"):
        (h, w), x = params["grid"], tensors["input.features"]
        tokens = VisualTokens(
            features=x.flatten(0, 1)[None],
            position=cells(len(x), h, w)[None],
            grid=torch.tensor([[len(x), h, w]]),
        )
        reducer = QuoTA(
            keep=min(params["target_tokens"], len(x) * h * w),
            scorer=tuple((tensors["input.raw_weights"].sqrt() / 100).tolist()),
            compress=compress[params["version"]],  # type: ignore[arg-type]
            compat="repo",
        )
        got = reducer.select(tokens).apply(tokens.features)[0]
        if params["version"] == "v1" and (tensors["output.frame_shapes"] > h).any():
            assert torch.equal(got, x[1])  # theirs has more tokens than there were
            continue
        torch.testing.assert_close(got, tensors["output.tokens"], rtol=1e-5, atol=1e-6)
