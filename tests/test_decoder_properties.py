"""What every method inside the decoder has to hold, on models and on prompts made up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok import plan, reduced
from mmtok.pruning import FrameFusion, build
from mmtok.pruning.decoder import DecoderPrompt, keeping
from mmtok.pruning.methods.framefusion import merge_runs
from mmtok.tokens import Selection
from tests.conftest import batch, tiny_model
from tests.matrix import IN_DECODER, SPECS
from tests.test_decoder_methods import prompt
from tests.test_decoder_seam import InDecoder, reached

# MustDrop begins in the tower: what holds of it stands in test_mustdrop.py.
METHODS = {*IN_DECODER} - {"mustdrop"}
INSIDE = [spec for spec in SPECS if spec.split("(")[0] in METHODS]
GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}


def left_visual(reduction: Any) -> list[list[list[int]]]:
    """Per layer and prompt, which of its visual tokens reach the layer."""
    lefts = reduction.seams.decoder.left
    visual = torch.zeros(len(lefts[0].index), lefts[0].prompt, dtype=torch.bool)
    for part in reduction.media:
        visual.view(-1)[torch.cat(part.places)] = True
    return [
        [
            row[places].nonzero().squeeze(1).tolist()
            for row, places in zip(mask, visual, strict=True)
        ]
        for mask in map(reached, lefts)
    ]


@pytest.mark.parametrize("case", [("llava", "image"), ("qwen2_5_vl", "video")], ids="-".join)
@pytest.mark.parametrize("spec", INSIDE)
def test_exact_budget_and_no_batch_mate_matters(spec: str, case: tuple[str, str]) -> None:
    model, _ = tiny_model(case[0])
    (reducer,) = build(spec.format(keep=0.3))
    runs = []
    for rows in ((0, 1), (0,), (1,)):
        with reduced(model, reducer) as reduction:
            model.generate(**batch(*case, rows=rows), **GREEDY)
        runs.append(left_visual(reduction))
    for together, first, second in zip(*runs, strict=True):
        assert together == first + second
    for row in (0, 1):
        counts = [len(layer[row]) for layer in runs[0]]
        schedule = reducer.decoder_schedule(4, counts[0])
        assert counts[-1] == schedule[-1] == reducer.keep_count(counts[0])
        if isinstance(reducer, FrameFusion):
            assert all(a <= b for a, b in zip(counts, schedule, strict=True))
        else:
            assert counts == schedule


@pytest.mark.parametrize("spec", INSIDE)
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_odd_prompts(spec: str, n: int) -> None:
    """Few tokens, zero vectors, equal scores, no text behind the image."""
    (reducer,) = build(spec.format(keep=3))
    zero = {"hidden": torch.zeros(60, 8), "embeddings": torch.zeros(60, 8)}
    for facts in (zero, {}, {"text": torch.arange(6)}):
        seen = prompt(1, n, activation=torch.zeros(60, 16), **facts)
        left = n
        for stage in reducer.in_decoder(8):
            selection = stage.rule(seen)
            index = selection.indices[0]
            assert (index[1:] > index[:-1]).all()
            assert int(index[0]) >= 0
            assert int(index[-1]) < left
            assert selection.apply(seen.hidden[None, seen.visual])[0].isfinite().all()
            seen.visual, seen.cell = seen.visual[index], seen.cell[index]
            seen.size, left = seen.size[index], len(index)
        assert left == min(n, 3)


@pytest.mark.parametrize("spec", ["sparsevlm(keep=10)", "framefusion(keep=10, similarity=-0.5)"])
def test_what_merges_is_a_mean(spec: str) -> None:
    (reducer,) = build(spec)
    selection = reducer.in_decoder(8)[0].rule(prompt(2))
    assert selection.merge is not None
    source, slot, weight = selection.merge[0]
    assert len(source) == len(source.unique())
    total = torch.zeros(len(selection.indices[0])).index_add_(0, slot, weight)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_framefusion_conserves_mass() -> None:
    generator = torch.Generator().manual_seed(0)
    x, order = torch.randn(30, 4, generator=generator), torch.randperm(30, generator=generator)
    size = torch.randint(1, 5, (30,), generator=generator).float()
    joins = torch.rand(30, generator=generator) < 0.6
    joins[0] = False
    selection = merge_runs(order, joins, size)
    assert selection.merge is not None
    source, slot, _ = selection.merge[0]
    sizes = torch.zeros(len(selection.indices[0])).index_add_(0, slot, size[source])
    assert sizes.sum() == size.sum()
    assert sorted(source.tolist()) == list(range(30))
    got = (selection.apply(x[None])[0] * sizes[:, None]).sum(0)
    torch.testing.assert_close(got, (x * size[:, None]).sum(0))


def test_methods_follow_one_another_in_a_decoder() -> None:
    """The plan counts the second from what the first leaves, and so does the run."""
    specs = ["stride(keep=20)", "fastv(keep=0.5, layer=1)", "pyramiddrop(keep=0.5, layers=(2, 3))"]
    model, _ = tiny_model("llava")
    with reduced(model, specs) as reduction:
        model.generate(**batch("llava", "image", rows=(0,)), **GREEDY)
    assert reduction.seams.decoder is not None
    lengths = [left.index.shape[1] for left in reduction.seams.decoder.left if left is not None]
    text = lengths[0] - 20
    assert [n - text for n in lengths] == [20, 10, 7, 5]
    cost = plan(model.config, reduce=specs, text_tokens=text, image_size=(84, 84)).reduced
    per_token = 2 * 64 * 2
    assert cost.kv_bytes == per_token * sum(lengths)


def blend(prompt: DecoderPrompt) -> Selection:
    """Drop nothing, but let the first token count twice: as itself and in the second."""
    n = len(prompt.visual)
    source, slot = torch.cat([torch.arange(n), torch.zeros(1).long()]), torch.arange(n + 1)
    slot[n] = 1
    weight = torch.ones(n + 1)
    weight[[1, n]] = 0.5
    return Selection(indices=[torch.arange(n)], merge=[(source, slot, weight)])


def test_a_merge_need_not_drop() -> None:
    model, _ = tiny_model("llava")
    sizes: list[list[float]] = []

    def look(prompt: DecoderPrompt) -> Selection:
        sizes.append(prompt.size.tolist())
        return keeping(torch.arange(len(prompt.visual)))

    with reduced(model, InDecoder(rules={1: blend, 2: look})) as reduction:
        model.generate(**batch("llava", "image", rows=(0,)), **GREEDY)
    assert reduction.seams.decoder is not None
    assert reduction.seams.decoder.left[3] is not None
    assert reduction.seams.decoder.left[3].whole
    assert sizes == [[1.0, 2.0] + [1.0] * 34]
