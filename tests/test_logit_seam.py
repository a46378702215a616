"""Contrasted logits: DAMRO against two plain forwards per token, without cache, batch or hooks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok import InputError, Pipeline, plan, reduced
from mmtok.accounting.analytic import kv_bytes
from mmtok.models.lvlm import LVLM
from mmtok.pruning import FasterVLM, Outliers, VisualTokens
from mmtok.pruning.methods.damro import DAMRO
from mmtok.pruning.outliers import find_outliers
from tests.conftest import batch, tiny_model

EOS, NEW = 2, 5


def slow_outliers(model: Any, family: str, inputs: dict[str, Any], k: int) -> list[Tensor]:
    """The features of each image's outliers, projections read where the tower makes them."""
    seen: dict[str, Tensor] = {}
    tower = model.base_model.vision_tower.encoder
    last = (tower.layers if hasattr(tower, "layers") else tower.layer)[-1]
    attention = last.self_attn if hasattr(last, "self_attn") else last.attention
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, output)
        )
        for name in ("q_proj", "k_proj")
    ]
    arguments = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes")}
    features = list(
        model.base_model.get_image_features(**arguments, return_dict=True).pooler_output
    )
    for hook in hooks:
        hook.remove()
    out = []
    for q, key, x in zip(seen["q_proj"], seen["k_proj"], features, strict=True):
        row = torch.stack([q[0] @ key[j] for j in range(len(key))]) / math.sqrt(len(q[0]))
        order = row.softmax(0)[1:].argsort(descending=True)[:k]
        out.append(x[order])
    return out


def embedded(model: Any, ids: Tensor, features: list[Tensor]) -> Tensor:
    """(1, S, D): a prompt (S,) with its runs of placeholders replaced by features."""
    token = model.config.image_token_id
    table = model.get_input_embeddings()
    parts, rest = [], list(features)
    for place, i in enumerate(ids.tolist()):
        if i != token:
            parts.append(table(ids[place])[None])
        elif place == 0 or int(ids[place - 1]) != token:
            parts.append(rest.pop(0))
    assert not rest
    return torch.cat(parts)[None]


@torch.no_grad()
def reference(family: str, rows: tuple[int, ...], damro: DAMRO, choose: Any) -> list[Tensor]:
    """Scores (B, V) of each step, every forward from scratch."""
    model, _ = tiny_model(family)
    prompts = []
    for row in rows:
        inputs = batch(family, "image", (row,))
        prompts.append((inputs, slow_outliers(model, family, inputs, damro.outliers)))
    made: list[list[int]] = [[] for _ in rows]
    steps = []
    for _ in range(NEW):
        scores = []
        for (inputs, features), answer in zip(prompts, made, strict=True):
            ids = torch.cat([inputs["input_ids"][0], torch.tensor(answer, dtype=torch.int64)])
            whole = {k: v for k, v in inputs.items() if k != "attention_mask"}
            plain = model(**whole | {"input_ids": ids[None]}).logits[0, -1]
            other = model(inputs_embeds=embedded(model, ids, features)).logits[0, -1]
            plain[EOS] = -torch.inf  # min_new_tokens
            want = (1 + damro.alpha) * plain - damro.alpha * other
            least = math.log(damro.beta) + plain.max()
            scores.append(torch.where(plain >= least, want, -torch.inf))
        steps.append(torch.stack(scores))
        for answer, token in zip(made, choose(steps[-1]), strict=True):
            answer.append(int(token))
    return steps


def same(got: Any, want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.isinf(), b.isinf())
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


OPTIONS: dict[str, Any] = {
    "max_new_tokens": NEW,
    "min_new_tokens": NEW,
    "output_scores": True,
    "return_dict_in_generate": True,
}


@pytest.mark.parametrize("rows", [(0, 1), (1,)])
@pytest.mark.parametrize("spec", ["damro", "damro(alpha=0.5, beta=0.4, outliers=3)"])
def test_greedy_equals_two_forwards_per_token(spec: str, rows: tuple[int, ...]) -> None:
    model, _ = tiny_model("llava")
    with reduced(model, spec) as reduction:
        got = model.generate(**batch("llava", "image", rows), do_sample=False, **OPTIONS)
    damro = reduction.reducers[0]
    want = reference("llava", rows, damro, lambda scores: scores.argmax(-1))
    same(got.scores, want)
    assert torch.equal(got.sequences[:, -NEW:], torch.stack([s.argmax(-1) for s in want], dim=1))


def test_sampling_acts_behind_the_contrast() -> None:
    model, _ = tiny_model("llava")
    torch.manual_seed(5)
    with reduced(model, "damro(alpha=1)"):
        got = model.generate(
            **batch("llava", "image"),
            do_sample=True,
            temperature=0.7,
            top_p=0.8,
            top_k=0,
            **OPTIONS,
        )
    torch.manual_seed(5)

    def warped(scores: Tensor) -> Tensor:
        scores = scores / 0.7
        order = scores.sort(-1)
        low = order.values.softmax(-1).cumsum(-1) <= 1 - 0.8
        return scores.masked_fill(low.scatter(1, order.indices, low), -torch.inf)

    want = reference(
        "llava",
        (0, 1),
        DAMRO(alpha=1),
        lambda scores: torch.multinomial(warped(scores).softmax(-1), 1)[:, 0],
    )
    same(got.scores, [warped(scores) for scores in want])


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])
def test_a_batch_gives_what_its_prompts_give(family: str) -> None:
    model, _ = tiny_model(family)
    with reduced(model, "damro(alpha=0.5, outliers=4)"):
        both = model.generate(**batch(family, "image"), do_sample=False, **OPTIONS)
        for row in (0, 1):
            one = model.generate(**batch(family, "image", (row,)), do_sample=False, **OPTIONS)
            assert torch.equal(one.sequences[0, -NEW:], both.sequences[row, -NEW:])
            for a, b in zip(one.scores, both.scores, strict=True):
                torch.testing.assert_close(a[0], b[row], rtol=1e-3, atol=2e-4)


def test_no_strength_changes_nothing() -> None:
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    want = model.generate(**inputs, do_sample=False, **OPTIONS)
    with reduced(model, "damro(alpha=0)") as reduction:
        got = model.generate(**inputs, do_sample=False, **OPTIONS)
    assert reduction.contrast is None
    assert all(torch.equal(a, b) for a, b in zip(got.scores, want.scores, strict=True))
    with reduced(model, "damro") as reduction:
        plain = model(**inputs).logits
        assert torch.equal(plain, model(**inputs).logits), "a plain forward is not touched"
        text = {k: inputs[k][:, -4:] for k in ("input_ids", "attention_mask")}
        model.generate(**text, do_sample=False, max_new_tokens=2)
        assert reduction.contrast is None, "no picture, nothing to contrast with"


def test_the_second_branch_is_accounted_for() -> None:
    model, processor = tiny_model("llava")
    lvlm = LVLM(model=model, processor=processor, name="llava", config=model.config)
    pipeline = Pipeline(lvlm, ["fastervlm(keep=12)", "damro(outliers=4)"])
    result = pipeline.run(batch("llava", "image"), count=True, max_new_tokens=3, min_new_tokens=3)
    rows = {row.stage: row for row in result.ledger.stages}
    extra = rows["decode.contrast"]
    assert extra.flops == extra.flops_analytic
    assert extra.flops > rows["decode"].flops
    other = result.reduction.contrast
    length = other.prompt["input_ids"].shape[1]
    assert extra.kv_bytes == 2 * kv_bytes(model.config.text_config, length + 2, "float32")
    assert rows["decode"].kv_bytes > extra.kv_bytes
    seen = int(other.prompt["attention_mask"].sum())
    assert (extra.tokens_in, extra.tokens_out) == (seen + 4, 6)
    assert [k for _, _, k in result.reduction.tokens] == [12, 12, 12]
    one = pipeline.run(batch("llava", "image", (0,)), max_new_tokens=3, min_new_tokens=3)
    row = next(row for row in one.ledger.stages if row.stage == "decode.contrast")
    text = int(batch("llava", "image", (0,))["attention_mask"].sum()) - 36
    planned = plan(
        model.config,
        reduce="damro(outliers=4)",
        text_tokens=text,
        new_tokens=3,
        dtype="float32",
    ).reduced.ledger.stages[-1]
    assert (planned.stage, planned.flops_analytic) == ("decode.contrast", row.flops_analytic)
    assert (planned.kv_bytes, planned.tokens_in) == (row.kv_bytes, row.tokens_in)


def test_outliers_of_split_and_unsplit_heads() -> None:
    x = torch.zeros(2, 6, 3)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    tokens = VisualTokens(
        features=x,
        mask=mask,
        cls_attention=torch.tensor([[0.1, 0.3, 0.1, 0.2, 0.1, 0.2], [0.1, 0.2, 0.3, 0.2, 9, 9]]),
        cls_joint=torch.tensor([[0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.3, 9, 9]]),
    )
    assert find_outliers(tokens, 0, 3).tolist() == [0, 1, 2]
    assert find_outliers(tokens, 1, 9).tolist() == [3, 2, 0, 1]
    assert find_outliers(tokens, 0, 3, per_head=True).tolist() == [1, 3, 5]
    with pytest.raises(InputError, match="do not carry"):
        find_outliers(VisualTokens(features=x), 0, 2)


def test_outliers_are_kept_from_the_method_that_follows() -> None:
    attention = torch.tensor([[0.1, 0.3, 0.15, 0.25, 0.2], [0.2, 0.9, 0.9, 0.1, 9.0]])
    tokens = VisualTokens(
        features=torch.arange(20.0).view(2, 5, 2),
        mask=torch.tensor([[True] * 5, [True] * 4 + [False]]),
        cls_attention=attention,
        cls_joint=attention.flip(1).masked_fill(attention.flip(1) > 1, 0),
    )
    kept = Outliers(count=2, per_head=True).select(tokens)
    assert [i.tolist() for i in kept.indices] == [[0, 2, 4], [0, 3]]
    left = tokens.gather(kept.indices)
    behind = FasterVLM(keep=1).select(left)
    assert [left.features[b, i].tolist() for b, i in enumerate(behind.indices)] == [
        *([[8.0, 9.0]], [[10.0, 11.0]])
    ]
    assert Outliers(count=2).select(tokens).indices[0].tolist() == [0, 2, 4]
    assert [len(i) for i in Outliers(count=99).select(tokens).indices] == [1, 1]
    model, _ = tiny_model("llava")
    with torch.no_grad(), reduced(model, ["outliers(count=3)", "fastervlm(keep=5)"]) as reduction:
        model(**batch("llava", "image"))
    assert [kept for _, _, kept in reduction.tokens] == [5, 5, 5]
    for wrong in ({"count": -1}, {"keep": 0.5}):
        with pytest.raises(InputError, match="outliers: "):
            Outliers(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "options", "match"),
    [
        ("damro", {"num_beams": 2}, "beams, several"),
        ("damro", {"num_return_sequences": 2, "do_sample": True}, "beams, several"),
        ("damro", {"prompt_lookup_num_tokens": 3}, "assistants do not work"),
        (["damro", "damro"], {}, "only one reducer of a pipeline can contrast"),
        (["fastv", "damro"], {}, "does not work beside dropping inside the decoder"),
        ("damro(keep=0.5)", {}, "keep must be 1.0"),
        ("damro(alpha=-1)", {}, "alpha must be"),
        ("damro(beta=0)", {}, "beta must be"),
        ("damro(outliers=0)", {}, "outliers must be"),
    ],
)
def test_what_cannot_work_is_refused(spec: Any, options: dict[str, Any], match: str) -> None:
    model, _ = tiny_model("llava")
    with pytest.raises(InputError, match=match), reduced(model, spec):
        model.generate(**batch("llava", "image"), max_new_tokens=2, **options)
