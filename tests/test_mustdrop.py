"""MustDrop against slow rules, and its budget through all three stages."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok import InputError, plan, reduced
from mmtok.accounting.analytic import decoder_flops
from mmtok.models.survivors import Survivors
from mmtok.pruning.methods.mustdrop import MustDrop, dual, path
from mmtok.pruning.stages import TowerTokens
from tests.conftest import batch, tiny_model


def tower_tokens(seed: int, grid: tuple[int, int], crops: int = 3, **change: Any) -> TowerTokens:
    """Crops in which some windows are alike: cells drawn around a few directions."""
    generator = torch.Generator().manual_seed(seed)
    h, w = grid
    base = torch.randn(crops, math.ceil(h / 3), math.ceil(w / 3), 8, generator=generator)
    base = base.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :h, :w]
    spread = torch.rand(crops, h, w, 1, generator=generator) * 0.8
    x = base + spread * torch.randn(crops, h, w, 8, generator=generator)
    x = torch.cat([torch.randn(crops, 1, 8, generator=generator), x.flatten(1, 2)], dim=1)
    free = torch.arange(h * w + 1).expand(crops, -1) > 0
    values: dict[str, Any] = {
        "layer": 0,
        "layers": 4,
        "features": x.double(),
        "keys": None,
        "size": torch.ones(crops, h * w + 1),
        "free": free,
        "start": free.sum(1),
        "target": torch.ones(crops, dtype=torch.int64),
        "first": torch.arange(h * w + 1).expand(crops, -1),
        "grid": grid,
        "prefix": 1,
    }
    return TowerTokens(**values | change)


def slow_windows(tokens: TowerTokens, crop: int, theta: float) -> list[tuple[float, list[int]]]:
    """(similarity, cells) of the windows that merge, from all pairs, the most alike first."""
    h, w = tokens.grid
    found = []
    for i in range(h // 3):
        for j in range(w // 3):
            cells = [(3 * i + a) * w + 3 * j + b for a in range(3) for b in range(3)]
            rows = [tokens.features[crop, 1 + c] for c in cells]
            pairs = [
                float(torch.cosine_similarity(x, y, dim=0))
                for a, x in enumerate(rows)
                for b, y in enumerate(rows)
                if a != b
            ]
            if all(bool(tokens.free[crop, 1 + c]) for c in cells):
                found.append((sum(pairs) / len(pairs), [1 + c for c in cells]))
    return sorted((f for f in found if f[0] >= theta), reverse=True)


def merged(label: Tensor) -> list[list[int]]:
    rows = label.tolist()
    return sorted(
        [i for i, x in enumerate(rows) if x == name] for name in set(rows) if rows.count(name) > 1
    )


@pytest.mark.parametrize("grid", [(6, 6), (8, 7), (9, 12), (2, 5)])
@pytest.mark.parametrize("theta", [0.5, 0.8])
def test_windows_equal_all_pairs(grid: tuple[int, int], theta: float) -> None:
    tokens = tower_tokens(sum(grid), grid)
    hidden = tokens.free.clone()
    hidden[1, 1] = False  # padding of an AnyRes crop
    target = torch.tensor([1, 1, max(grid[0] * grid[1] - 12, 1)])
    tokens = tower_tokens(sum(grid), grid, free=hidden, start=hidden.sum(1), target=target)
    label, flops = MustDrop(theta=theta).windows(tokens)
    assert flops == 0
    for crop, most in enumerate([99, 99, min(1, grid[0] * grid[1] // 9)]):
        want = slow_windows(tokens, crop, theta)[:most]
        assert merged(label[crop]) == sorted(cells for _, cells in want)
        for _, cells in want:
            assert label[crop, cells[0]] == cells[0], "in the first cell's place"
    later = tower_tokens(1, grid, layer=1)
    assert all(merged(row) == [] for row in MustDrop(theta=-1).windows(later)[0])


def test_repo_merges_as_few_as_the_least_alike() -> None:
    tokens = tower_tokens(5, (9, 9))
    own = [len(slow_windows(tokens, crop, 0.7)) for crop in range(3)]
    assert min(own) < max(own)
    label, _ = MustDrop(theta=0.7, compat="repo").windows(tokens)
    for crop in range(3):
        want = slow_windows(tokens, crop, 0.7)[: min(own)]
        assert merged(label[crop]) == sorted(cells for _, cells in want)


def test_the_budget_is_exact_whatever_merges() -> None:
    model, _ = tiny_model("llava")
    for theta in (-1, 2):
        for keep, want in [(0.3, [11, 22]), (5, [5, 5]), (0.9, [32, 65])]:
            with reduced(model, MustDrop(keep=keep, theta=theta)) as reduction:
                model.generate(**batch("llava", "image"), do_sample=False, max_new_tokens=2)
            last = reduction.seams.decoder.left[-1]
            assert isinstance(last, Survivors)
            entered = [k for _, _, k in reduction.tokens]
            text = batch("llava", "image")["attention_mask"].sum(1) - torch.tensor([36, 72])
            assert (last.real.sum(1) - text).tolist() == want
            assert (max(entered) < 36) == (theta == -1 and keep != 0.9)


def test_stages_follow_the_rule() -> None:
    """All stages, on a model of its own, from attention maps of an eager copy."""
    model, _ = tiny_model("llava")
    spec = MustDrop(keep=20, theta=2, key_share=0.1)
    inputs = batch("llava", "image", (0,))
    with reduced(model, spec) as reduction:
        model(**inputs)
    left = [s.index[0][s.real[0]].tolist() for s in reduction.seams.decoder.left if s is not None]
    visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().squeeze(1).tolist()
    cls = reduction.media[0].tokens.cls_attention[0].double()
    key = {visual[i] for i in cls.topk(4).indices.tolist()}  # ceil(0.1 * 36)
    config = model.config.get_text_config()
    old = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        alone = visual
        assert spec.behind(4) == [0, 1]
        for number, layer in enumerate(spec.behind(4), 1):
            index = left[layer]
            attention = attention_map(model, inputs, left, layer)
            rows = [r for r, place in enumerate(index) if place > alone[-1]]
            score = {}
            total = sum(attention[r, index.index(v)] for r in rows for v in alone)
            for v in alone:
                column = attention[rows, index.index(v)]
                score[v] = max(float(column.sum() / (0.001 * total)), float(column.max() / 0.001))
            count = round(36 * (20 / 36) ** (number / 2) + 1e-9)
            ranked = sorted(alone, key=lambda v: (v not in key, -score[v]))
            alone = sorted(ranked[:count])
            assert [p for p in left[layer + 1] if p in visual] == alone
        assert len(alone) == 20
    finally:
        config._attn_implementation = old


def attention_map(model: Any, inputs: Any, left: list[list[int]], layer: int) -> Tensor:
    """(S, S) head-mean attention of one layer in a full-length run that hides what has left."""
    length = inputs["input_ids"].shape[1]
    masks = []
    for places in left:
        gone = torch.ones(length, dtype=torch.bool)
        gone[places] = False
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        mask[:, gone] = torch.finfo(torch.float32).min
        masks.append(mask[None, None])
    hooks = [
        block.register_forward_pre_hook(
            lambda m, args, kwargs, mask=mask: (args, kwargs | {"attention_mask": mask}),
            with_kwargs=True,
        )
        for block, mask in zip(model.get_decoder().layers, masks, strict=True)
    ]
    seen: list[Tensor] = []
    hooks.append(
        model.get_decoder()
        .layers[layer]
        .self_attn.register_forward_hook(lambda m, args, output: seen.append(output[1]))
    )
    model(**inputs)
    for hook in hooks:
        hook.remove()
    places = left[layer]
    return seen[0][0].mean(0)[places][:, places].double()


def test_thresholds_keep_what_either_lets_through() -> None:
    total = torch.tensor([0.5, 0.3, 0.15, 0.05]).double()
    peak = torch.tensor([0.1, 0.02, 0.2, 0.01]).double()
    assert dual(total, peak, 0.2, 0.15).tolist() == [True, True, True, False]
    assert dual(total, peak, 1e-9, 1e9).all(), "keeps all"
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    counts = []
    for g, key in [(1e-9, 0.0), (1e9, 0.0), (1e9, 0.5)]:
        spec = f"mustdrop(budget_mode='threshold', theta=2, global_share={g}, single={g}, "
        with reduced(model, spec + f"key_share={key})") as reduction:
            model(**inputs)
        counts.append(reduction.seams.decoder.left[-1].real.sum(1).tolist())
    text = (inputs["attention_mask"].sum(1) - torch.tensor([36, 72])).tolist()
    assert counts[0] == [text[0] + 36, text[1] + 72]
    assert counts[1] == text, "and drops all"
    assert counts[2] == [text[0] + 18, text[1] + 36], "but for the key set of each image"


def test_a_batch_gives_what_its_prompts_give() -> None:
    model, _ = tiny_model("llava_next")
    with reduced(model, "mustdrop(keep=0.3, theta=0.2)") as reduction:
        options = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
        both = model.generate(**batch("llava_next", "image"), **options)
        kept = [k.tolist() for k in reduction.media[0].kept]
        alone = []
        for row in (0, 1):
            one = model.generate(**batch("llava_next", "image", (row,)), **options)
            alone += [k.tolist() for k in reduction.media[0].kept]
            assert torch.equal(one[0, -4:], both[row, -4:])
    assert kept == alone


def test_path_and_plan() -> None:
    assert [path(576, 64, i / 4) for i in range(1, 5)] == [333, 192, 111, 64]
    assert path(10, 64, 0.5) == 10
    assert MustDrop().behind(32) == [2, 6, 10, 14]
    assert MustDrop().behind(40) == [2, 7, 12, 17]
    assert (
        MustDrop().decoder_schedule(32, 576)
        == [576] * 3 + [333] * 4 + [192] * 4 + [111] * 4 + [64] * 17
    )
    less = plan("llava-1.5-7b", reduce="mustdrop(keep=64)")
    assert less.reduced.visual_tokens == 576, "windows may all differ"
    assert less.reduced.prefill_flops < less.baseline.prefill_flops / 2


@pytest.mark.parametrize("theta", [2, 0.2])
def test_a_plan_bounds_the_run(theta: float) -> None:
    model, _ = tiny_model("llava")
    spec, inputs = f"mustdrop(keep=12, theta={theta})", batch("llava", "image", (0,))
    with reduced(model, spec) as reduction:
        model(**inputs)
    left = [x.index.shape[1] for x in reduction.seams.decoder.left]
    ran = decoder_flops(model.config.text_config, left, logits="last")
    text = inputs["input_ids"].shape[1] - 36
    planned = plan(model.config, reduce=spec, text_tokens=text).reduced
    if theta == 2:
        assert (planned.visual_tokens, planned.prefill_flops) == (36, ran), "no window merges"
    else:
        assert left[0] - text < planned.visual_tokens == 36
        assert planned.prefill_flops > ran


@pytest.mark.parametrize(
    "argument", ["theta=3", "key_share=2", "single=0", "global_share=-1", "budget_mode='x'"]
)
def test_wrong_arguments_are_refused(argument: str) -> None:
    model, _ = tiny_model("llava")
    name = argument.partition("=")[0]
    with pytest.raises(InputError, match=f"mustdrop: {name} must be"):  # noqa: SIM117
        with reduced(model, f"mustdrop({argument})"):
            pass
