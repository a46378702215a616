"""Merging inside the vision tower, against a slow tower of its own and from the definitions."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok import InputError, Pipeline, plan, reduced
from mmtok.accounting.rows import analytic_flops
from mmtok.models.crops import crops_of
from mmtok.models.lvlm import LVLM
from mmtok.models.reduction import Reduction
from mmtok.pruning import ToMe
from tests.conftest import batch, tiny_model

SLOW = {"llava": 1, "paligemma": 2, "llava_next": 1}  # layers up to the one that is read


@torch.no_grad()
def slow_tome(tower: Any, hidden: Tensor, prefix: int, lose: list[int], weigh: bool) -> Any:
    """One crop (S, D) through a tower in fp64, one token, one head, one pair at a time.

    Returns the features of its groups after the layers that merge, and the groups.
    """
    groups = [[i] for i in range(len(hidden))]
    for layer, less in zip(tower, lose, strict=False):
        x = layer.layer_norm1(hidden)
        attention = layer.self_attn
        heads, width = attention.num_heads, x.shape[1] // attention.num_heads
        q, k, v = (
            p(x).view(-1, heads, width)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        bias = torch.tensor([len(g) for g in groups]).double().log() * weigh
        out = torch.stack(
            [(q[:, h] @ k[:, h].T / width**0.5 + bias).softmax(-1) @ v[:, h] for h in range(heads)],
            dim=1,
        )
        hidden = hidden + attention.out_proj(out.flatten(1))
        metric = k.mean(1)
        while less:
            hidden, metric, groups, done = slow_round(hidden, metric, groups, prefix, less)
            less -= done
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return hidden, groups


def slow_round(hidden: Tensor, metric: Tensor, groups: Any, prefix: int, r: int) -> Any:
    n = len(groups)
    pairs = []
    for a in range(0, n, 2):
        if a < prefix:
            continue
        score = [
            (torch.cosine_similarity(metric[a], metric[b], dim=0).item(), -b)
            for b in range(1, n, 2)
            if b >= prefix
        ]
        best, b = max(score)
        pairs.append((best, a, -b))
    pairs = sorted(pairs, reverse=True)[:r]
    home = {a: b for _, a, b in pairs}
    joined = [[i, *[a for a, b in home.items() if b == i]] for i in range(n) if i not in home]
    joined = sorted((sorted(g) for g in joined), key=lambda g: g[0])
    size = torch.tensor([len(g) for g in groups]).double()
    mean = [
        torch.stack([(x[g] * size[g, None]).sum(0) / size[g].sum() for g in joined])
        for x in (hidden, metric)
    ]
    merged = [sorted(m for i in g for m in groups[i]) for g in joined]
    return *mean, merged, len(home)


def exact(family: str) -> Any:
    """The tiny model in fp64, with tokens far enough apart."""
    return deepcopy(tiny_model(family)[0]).double()


def doubled(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


@pytest.mark.parametrize("weigh", [True, False])
@pytest.mark.parametrize("family", SLOW)
def test_merging_equals_a_slow_tower(family: str, weigh: bool) -> None:
    model, inputs = exact(family), doubled(batch(family, "image"))
    tower = model.base_model.vision_tower
    layers = tower.encoder.layers
    seen: list[Tensor] = []
    hooks = [
        layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0])),
        layers[SLOW[family] - 1].register_forward_hook(lambda m, args, output: seen.append(output)),
    ]
    with reduced(model, ToMe(keep=0.3, proportional=weigh)) as reduction:
        model(**inputs)
    for hook in hooks:
        hook.remove()
    entered, left = seen
    [part] = reduction.media
    prefix = int(family != "paligemma")
    crops = part.tower.crops
    hidden_crops = entered[:, :prefix].shape[0]
    assert hidden_crops == len(crops.visible)
    for crop, (visible, target) in enumerate(zip(crops.visible, crops.target, strict=True)):
        if not bool(visible.all()):
            continue  # padding of AnyRes: the next test
        less = ToMe().schedule(len(visible) - int(target), SLOW[family])
        want, groups = slow_tome(layers, entered[crop], prefix, less, weigh)
        for feature, members in zip(want, groups, strict=True):
            for member in members:
                torch.testing.assert_close(left[crop, member], feature, rtol=1e-9, atol=1e-9)
        leaders = [g[0] - prefix for g in groups if g[0] >= prefix]
        flat = [
            int(o)
            for origin, kept in zip(crops.origin, part.kept, strict=True)
            for o in origin[kept]
        ]
        own = [o - crop * len(visible) for o in flat if o // len(visible) == crop]
        assert own == leaders


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "paligemma"])
def test_a_batch_gives_what_its_items_give(family: str) -> None:
    model, _ = tiny_model(family)
    with reduced(model, "tome(keep=0.4)") as reduction:
        model(**batch(family, "image"))
        together = reduction.media[0]
        alone = []
        for row in (0, 1):
            model(**batch(family, "image", (row,)))
            alone.append(reduction.media[0])
    kept = [k for part in alone for k in part.kept]
    features = [
        x[m] for part in alone for x, m in zip(part.tokens.features, part.tokens.mask, strict=True)
    ]
    rows = zip(together.tokens.features, together.tokens.mask, strict=True)
    if family == "llava_onevision":  # the two images of one prompt stay whole beside it
        assert len(kept) == len(together.kept)
    for index, want, x, (mine, mask) in zip(together.kept, kept, features, rows, strict=True):
        assert torch.equal(index, want)
        torch.testing.assert_close(mine[mask], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_padding_of_crops_and_newlines_stay_out_of_it(family: str) -> None:
    model, _ = tiny_model(family)
    inputs = batch(family, "image")
    crops = crops_of(model, inputs, lambda n: n // 2)
    assert not bool(crops.visible.all())
    with reduced(model, "tome(keep=0.5)") as reduction:
        model(**inputs)
    part = reduction.media[0]
    tower = part.tower
    assert tower is not None
    hidden = ~crops.visible
    assert torch.equal(tower._merged.leaders()[hidden], torch.arange(16).expand_as(hidden)[hidden])
    for origin, kept in zip(crops.origin, part.kept, strict=True):
        assert len(kept) == (len(origin) + 1) // 2, "exact budget"
        assert (origin[kept] >= 0).all(), "newlines leave first"
    with reduced(model, "tome(keep=65)") as reduction:
        model(**inputs)
    counts = [(len(o), len(k)) for o, k in zip(crops.origin, reduction.media[0].kept, strict=True)]
    assert all(k == min(65, n) for n, k in counts)
    with reduced(model, "tome(keep=2)"), pytest.raises(InputError, match="each of the 5 crops"):
        model(**inputs)


def test_cls_attention_and_keys_are_those_of_the_merged_tokens() -> None:
    """FasterVLM behind ToMe ranks by the attention to whole groups."""
    model, inputs = exact("llava"), doubled(batch("llava", "image", (0,)))
    layers = model.base_model.vision_tower.encoder.layers
    entered: list[Tensor] = []
    hook = layers[0].register_forward_pre_hook(lambda m, args: entered.append(args[0]))
    with reduced(model, ["tome(keep=12)", "fastervlm(keep=5)"]) as reduction:
        model(**inputs)
    hook.remove()
    hidden, groups = slow_tome(layers, entered[0][0], 1, [24], True)
    x = layers[1].layer_norm1(hidden)
    attention = layers[1].self_attn
    q, k = (
        p(x).view(len(x), attention.num_heads, -1) for p in (attention.q_proj, attention.k_proj)
    )
    score = torch.einsum("hd,nhd->hn", q[0], k) * attention.scale
    size = torch.tensor([len(g) for g in groups]).double()
    rank = (score + size.log()).softmax(-1).mean(0)[1:]
    want = sorted(groups[1 + i][0] - 1 for i in rank.topk(5).indices.tolist())
    assert reduction.media[0].kept[0].tolist() == want
    torch.testing.assert_close(
        reduction.media[0].tokens.cls_attention[0], rank[rank.topk(5).indices.sort().values].float()
    )


def test_every_layer_leaves_the_full_grid_behind() -> None:
    model, _ = tiny_model("llava")
    shapes: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda m, args, output: shapes.append(output.shape[1]))
        for layer in model.base_model.vision_tower.encoder.layers
    ]
    with reduced(model, "tome(keep=0.2)") as reduction:
        model(**batch("llava", "image"))
    for hook in hooks:
        hook.remove()
    assert shapes == [37, 37]
    assert reduction.media[0].tower.lengths == [(37, 8), (8, 8)]


def test_hooks_are_gone_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model("llava")
    model(**batch("llava", "image"))  # transformers installs its own hooks once

    def hooks() -> int:
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.base_model.modules()
        )

    def broken(self: Any, tokens: Any) -> Any:
        raise RuntimeError("broken rule")

    before = hooks()
    monkeypatch.setattr(ToMe, "_match", broken)
    with reduced(model, "tome(keep=0.2)"), pytest.raises(RuntimeError, match="broken rule"):
        model(**batch("llava", "image"))
    assert hooks() == before


@pytest.mark.parametrize("spec", ["tome(keep=0.3)", "tome(keep=2, every=4, inflect=0.5)"])
@pytest.mark.parametrize("family", ["llava", "paligemma"])
def test_the_plan_is_what_a_run_spends(family: str, spec: str) -> None:
    model, processor = tiny_model(family)
    lvlm = LVLM(model=model, processor=processor, name=family, config=model.config)
    done = Pipeline(lvlm, spec).one_pass(batch(family, "image"), Reduction(model, []).meter)
    spent = analytic_flops(lvlm, done)
    planned = {s.stage: s for s in plan(model.config, reduce=spec, images=3).reduced.ledger.stages}
    for stage in ("encode", "reduce.select"):
        assert planned[stage].flops_analytic == spent[stage] > 0
    with pytest.raises(InputError, match="tome does not fit internvl"):
        plan("internvl", reduce=spec)


def test_what_cannot_work_is_refused() -> None:
    model, _ = tiny_model("llava")
    config = model.config
    for name, value, match in [
        ("vision_feature_layer", [-2, -1], "reads several layers"),
        ("vision_feature_select_strategy", "full", "CLS is one of its visual tokens"),
    ]:
        old = getattr(config, name)
        setattr(config, name, value)
        try:
            with pytest.raises(InputError, match=match), reduced(model, "tome(keep=0.5)"):
                pass
        finally:
            setattr(config, name, old)
    with (
        pytest.raises(InputError, match="put it before stride"),
        reduced(model, ["stride", "tome"]),
    ):
        pass
    for spec, match in [("tome(inflect=2)", "inflect must"), ("tome(every=1)", "every must")]:
        with pytest.raises(InputError, match=match), reduced(model, spec):
            pass
    with reduced(model, "tome(keep=0.5)"), pytest.raises(InputError, match="reads no layer's out"):
        model(**batch("llava", "image"), vision_feature_layer=0)


@pytest.mark.parametrize("spec", ["tome(keep=0.5)", "tome(keep=0.5, every=3)", "mustdrop(keep=9)"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_refused(spec: str, value: float) -> None:
    """One of them, in one picture of a batch."""
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    inputs["pixel_values"][1, 0, 3, 3] = value
    refused = pytest.raises(InputError, match="features hold NaN or infinite values")
    with reduced(model, spec), refused:
        model(**inputs)
