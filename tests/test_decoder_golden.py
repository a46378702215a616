"""Reference vectors of the methods that work inside the decoder; see test_golden.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok.models.taps import LayerAttention
from mmtok.pruning import CoreMatching, FastV, PyramidDrop, SparseVLM
from mmtok.pruning.decoder import DecoderPrompt
from mmtok.pruning.dpc import density_peaks
from mmtok.pruning.methods.corematching import ANCHOR, above_knee, token_cores
from mmtok.pruning.methods.dart import least_alike
from mmtok.pruning.methods.framefusion import frame_likeness, merge_runs, tokens_to_keep
from mmtok.pruning.methods.sparsevlm import rater_score, raters, recycled, with_clusters
from mmtok.pruning.methods.todre import task_relevance
from mmtok.pruning.rank import top
from tests.test_golden import GOLDEN, cases

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="MMTOK_GOLDEN names no folder of reference vectors"
)


class KnownAttention:
    """Attention rows from a stored head-mean map."""

    flops = 0

    def __init__(self, rows: torch.Tensor) -> None:
        self.map = rows

    def rows(self, item: int, index: torch.Tensor) -> torch.Tensor:
        return self.map[index]

    def sees(self, item: int, index: torch.Tensor, target: torch.Tensor) -> bool:
        return True


def span(length: int, start: int, n: int, **facts: Any) -> DecoderPrompt:
    """A prompt of which n tokens from `start` on are visual."""
    place = torch.arange(length)
    inside = (place >= start) & (place < start + n)
    values: dict[str, Any] = {
        "visual": place[inside],
        "text": place[~inside],
        "hidden": torch.zeros(length, 1),
        "size": torch.ones(n),
        "cell": torch.zeros(n, 4, dtype=torch.int64),
        "norm": lambda x: x,
    }
    return DecoderPrompt(**values | facts)


def test_todre_relevance() -> None:
    for params, tensors in cases("todre_formula"):
        rows = tensors["input.attn_head_mean"]
        prompt = span(
            len(rows),
            params["v_start"],
            len(tensors["input.features"]),
            attention=KnownAttention(rows),
        )
        from_text, from_visual = task_relevance(prompt)
        assert from_text == pytest.approx(float(tensors["output.a_text_to_visual"]), rel=1e-10)
        assert from_visual == pytest.approx(float(tensors["output.a_visual_to_text"]), rel=1e-10)


def test_fastv() -> None:
    for params, tensors in cases("fastv"):
        row = tensors["input.attn_last_row"][0].mean(0)
        seen = KnownAttention(row.expand(params["seq"], -1))
        prompt = span(params["seq"], params["v_start"], params["n_img"], attention=seen)
        (stage,) = FastV(keep=params["k"]).in_decoder(32)
        kept = prompt.visual[stage.rule(prompt).indices[0]]
        places = torch.cat([prompt.text, kept]).sort().values
        assert torch.equal(places, tensors["output.kept_sequence"])


def test_pyramiddrop() -> None:
    for params, tensors in cases("pyramiddrop"):
        key, mask = tensors["input.keys"], tensors["input.additive_mask"]
        length = key.shape[1]
        last = int((mask[0, 0] == 0).nonzero()[-1])
        query = torch.zeros_like(key)
        query[:, last] = tensors["input.query_last_instruction"][:, 0]
        seen = LayerAttention(
            query=query[None],
            key=key[None],
            mask=mask.expand(1, 1, length, length),
            causal=False,
            scale=key.shape[2] ** -0.5,
        )
        prompt = span(length, params["v_start"], params["n_img"], attention=seen)
        prompt.text = prompt.text[prompt.text <= last]
        row = prompt.rows(prompt.last)[0, prompt.visual]
        want = tensors["output.scores"].to(row.dtype)
        torch.testing.assert_close(row, want, rtol=1e-5, atol=1e-8)
        (stage,) = PyramidDrop(keep=params["k"], layers=(8,)).in_decoder(32)
        kept = stage.rule(prompt).indices[0]
        assert torch.equal(kept, tensors["output.kept"])
        assert torch.equal(prompt.visual[kept], tensors["output.kept_sequence"])


def test_sparsevlm() -> None:
    for params, tensors in cases("sparsevlm"):
        if "k" not in params:  # the clustering alone
            x, count = tensors["input.tokens"][0], params["cluster_num"]
            peaks, label = density_peaks(x, count, count)
            means = torch.stack([x[label == c].mean(0) for c in range(count)])
            torch.testing.assert_close(means, tensors["output.merged"][0], rtol=1e-4, atol=1e-5)
            continue
        n, start, text = params["n_img"], params["v_start"], params["text"]
        rows = torch.zeros(len(tensors["input.hidden"][0]), n + start + text)
        rows[start + n :] = tensors["input.attn_text_rows"][0].mean(0)
        prompt = span(
            *(n + start + text, start, n),
            attention=KnownAttention(rows),
            embeddings=tensors["input.embeds"][0],
            hidden=tensors["input.hidden"][0],
        )
        assert prompt.embeddings is not None
        words = [prompt.embeddings[places] for places in (prompt.visual, prompt.asking)]
        torch.testing.assert_close(rater_score(*words), tensors["output.rater_score"][0])
        chosen = raters(*words)
        assert torch.equal(chosen, tensors["output.raters"])
        score = prompt.rows(prompt.asking[chosen]).mean(0)[prompt.visual]
        torch.testing.assert_close(score, tensors["output.relevance"][0], rtol=1e-5, atol=1e-7)
        k = params["k"]
        order = top(score, n)
        again = order[k : k + recycled(n - k, 0.3)]
        assert torch.equal(order[:k].sort().values, tensors["output.kept"])
        assert set(again.tolist()) == set(tensors["output.recycled_sources"].tolist())
        clusters = len(again) // 10 + 1
        assert clusters == params["cluster_num"]
        x = prompt.hidden[prompt.visual]
        peaks, label = density_peaks(x[again], clusters, clusters)
        selection = with_clusters(order[:k], again, peaks, label)
        merged = selection.apply(x[None])[0][torch.isin(selection.indices[0], again)]
        by_score = merged[again[peaks].argsort().argsort()]
        torch.testing.assert_close(by_score, tensors["output.merged"][0], rtol=1e-4, atol=1e-5)
        if clusters == 1:  # the whole rule, where the budget comes out the same
            (stage,) = SparseVLM(keep=k + 1, layers=(2,)).in_decoder(32)
            assert torch.equal(stage.rule(prompt).indices[0], selection.indices[0])


def test_dart() -> None:
    """Pivots, and what they take in the order of visit that the reference happened to use."""
    for params, tensors in cases("dart"):
        start, n, keys = params["v_start"], params["n_img"], tensors["input.keys"][0]
        norm = keys.abs().sum((0, 2))
        image = top(norm[start : start + n], params["pivot_image"])
        text = top(norm[start + n :], params["pivot_text"]) + start + n
        assert torch.equal(image + start, tensors["output.image_pivots"])
        assert torch.equal(text, tensors["output.text_pivots"])
        x = torch.nn.functional.normalize(tensors["input.hidden_normed"][0], dim=1)
        visit = tensors["output.pivot_visit_order"]
        quota = [params["per_pivot"]] * len(visit)
        taken = least_alike(x[visit] @ x[start : start + n].T, quota, image)
        kept = torch.cat([image, taken]).sort().values
        assert torch.equal(kept, tensors["output.kept"])


def test_framefusion() -> None:
    for params, tensors in cases("framefusion"):
        cells = tensors["input.cell_of_token"][0]
        x, place = tensors["input.hidden"][0], (cells >= 0).nonzero().squeeze(1)
        time = torch.arange(params["frames"]).repeat_interleave(params["cells"])
        zero = torch.zeros_like(time)
        cell = torch.stack([zero, time, zero, cells[place]], dim=1)
        order, likeness = frame_likeness(x[place], cell)
        assert torch.equal(place[order], tensors["output.token_index"][0])
        torch.testing.assert_close(likeness, tensors["output.similarity"][0], rtol=1e-5, atol=1e-6)
        joins = likeness >= params["similarity_lower_bound"]
        assert torch.equal(joins.nonzero().squeeze(1), tensors["output.merged_positions"])
        selection = merge_runs(order, joins, torch.ones(len(place)))
        kept = tensors["output.keep_mask"][0]
        assert torch.equal(place[selection.indices[0]], place[kept[place]])
        got = torch.zeros_like(x)
        got[~torch.isin(torch.arange(len(x)), place)] = x[cells < 0]
        got[place[selection.indices[0]]] = selection.apply(x[place][None])[0]
        want = tensors["output.hidden_after"][0]
        torch.testing.assert_close(got[kept], want, rtol=1e-4, atol=1e-5)


def test_framefusion_budget() -> None:
    """The published ratios to prune at, from shares merged in the layers so far."""
    runs: list[tuple[list[float], float]] = [([], 0.3), ([0.2], 0.3), ([0.3, 0.25, 0.05], 0.3)]
    n = 10**7
    for params, tensors in cases("framefusion"):
        ratios = tensors["output.pruning_ratio_examples"].tolist()
        for (shares, cost), want in zip([*runs, ([0.1], 0.9)], ratios, strict=True):
            read = [n]
            for share in shares:
                read.append(round(read[-1] * (1 - share)))
            kept = tokens_to_keep(n, read[1:], read[-1], cost, params["layers"])
            assert 1 - kept / read[-1] == pytest.approx(want, abs=1e-6)


def test_corematching() -> None:
    for params, tensors in cases("corematching"):
        x, anchor = tensors["input.activations"][0], params["seq"] - ANCHOR
        cores = token_cores(x, 0)
        score = (cores[params["image_start"] : params["image_end"]] & cores[anchor]).sum(1)
        assert torch.equal(score.float(), tensors["output.score"])
        kept = above_knee(score, strict=True)
        if len(tensors["output.kept"]) == 0:  # all scores equal: the reference keeps nothing
            assert len(kept) == len(score)
            continue
        assert torch.equal(kept, tensors["output.kept"])
        assert score[above_knee(score, strict=False)].min() == tensors["output.elbow_value"]
        prompt = span(
            *(params["seq"], params["image_start"], len(score)),
            activation=x,
        )
        reducer = CoreMatching(keep=len(score), knee="strict", compat="repo")
        (stage,) = reducer.in_decoder(32)
        assert torch.equal(stage.rule(prompt).indices[0], tensors["output.kept"])
