"""Reference vectors of image and frame-budget methods; see test_golden.py."""

from __future__ import annotations

import pytest
import torch

from mmtok.pruning import CDPruner, PruMerge
from mmtok.pruning.blocks import View, pooled
from mmtok.pruning.determinant import greedy_determinant
from mmtok.pruning.methods.quota import sample
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
    """Where nothing is capped the shares agree; elsewhere the reference loses mass, we do not."""
    total = 10**7
    for params, tensors in cases("quota_scale"):
        weights = tensors["input.weights"]
        cap = round(params["cap"] * total)
        got = torch.tensor(apportion(weights.tolist(), [cap] * len(weights), total)) / total
        assert float(got.sum()) == pytest.approx(1)
        if float(weights.max()) <= params["cap"]:
            torch.testing.assert_close(
                got, tensors["output.weights"].float(), rtol=0, atol=2 / total
            )
        else:
            assert float(tensors["output.sum"]) != pytest.approx(1)
            assert float(got.max()) == pytest.approx(params["cap"])


def test_quota_compress() -> None:
    for params, tensors in cases("quota_compress"):
        h, w = params["grid"]
        budget = tensors["output.budget_per_frame"].tolist()
        frames = [x for x, n in zip(tensors["input.features"], budget, strict=True) if n]
        shapes = tensors["output.frame_shapes"].tolist()
        parts = []
        if params["version"] == "v1":  # bilinear, may make more tokens than there were: not built
            continue
        for x, n, (rows, columns) in zip(frames, filter(None, budget), shapes, strict=True):
            if params["version"] == "v3":
                parts.append(x[sample([View(torch.arange(h * w), h, w)], [n])])
                continue
            _, (source, slot, weight) = pooled(h, w, [columns] * rows)
            empty = torch.zeros(rows * columns, x.shape[1])
            parts.append(empty.index_add(0, slot, x[source] * weight[:, None]))
        torch.testing.assert_close(torch.cat(parts), tensors["output.tokens"], rtol=1e-5, atol=1e-6)
