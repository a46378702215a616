"""Early exits: views of the target, what they read and leave alone, and how they choose."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok.decoding import DraftTree, Target, generate
from mmtok.decoding.drafters.dynamicexit import DynamicExit, best, tokens_per_layer
from mmtok.decoding.drafters.earlyexit import EarlyExit
from mmtok.decoding.drafters.s2d import S2D
from mmtok.decoding.exits import Nested, lend, view
from mmtok.decoding.layers import part
from mmtok.errors import InputError
from tests.conftest import batch, tiny_model
from tests.decoders import emu3, fading, llama, plain, prompts, row
from tests.test_decoding_greedy import GREEDY, NEW, new_tokens

TREE = DraftTree(torch.tensor([3, 5, 7, 1, 9, 2]), torch.tensor([-1, 0, 0, 1, 2, 4]), "det")
DRAFTERS = {
    "earlyexit": lambda: "earlyexit(exit=1)",
    "earlyexit_drawn": lambda: EarlyExit(exit=2, temperature=1.0),
    "dynamicexit": lambda: "dynamicexit",
    "s2d": lambda: S2D(model=fading(noise=0.02), exits=(1, 2), threshold=0.6),
}


def cut(model: Any, layers: int) -> Any:
    """A model with its first layers only, built anew."""
    config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": layers})
    config._attn_implementation = model.config._attn_implementation
    short = type(model)(config).eval()
    kept = {
        name: value
        for name, value in model.state_dict().items()
        if ".layers." not in name or int(name.split(".layers.")[1].split(".")[0]) < layers
    }
    short.load_state_dict(kept)
    return short


@pytest.mark.parametrize(
    ("lengths", "scale", "attention"),
    [
        ([9], 1.0, "sdpa"),
        ([9], 2.0, "sdpa"),
        ([9, 4, 6], 1.0, "sdpa"),
        ([9, 4, 6], 2.0, "sdpa"),
        ([9, 4, 6], 2.0, "eager"),
    ],
    ids=["one", "one-guided", "ragged", "ragged-guided", "eager"],
)
@pytest.mark.parametrize("name", DRAFTERS)
def test_tokens_are_those_of_plain_decoding(
    name: str, lengths: list[int], scale: float, attention: str
) -> None:
    model, inputs = fading(attention=attention), prompts(lengths)
    got = generate(model, inputs, drafter=DRAFTERS[name](), guidance_scale=scale, **GREEDY)
    rows = [row(inputs, r)["input_ids"][0].tolist() for r in range(len(lengths))]
    assert new_tokens(got.sequences, inputs) == [plain(model, r, NEW, scale=scale) for r in rows]
    assert sum(got.stats.hits) > NEW // 8
    assert got.stats.target_forwards < NEW
    assert got.stats.drafter_forwards > 0


@pytest.mark.parametrize("name", DRAFTERS)
def test_end_of_sequence_and_maximum_length_inside_a_draft(name: str) -> None:
    model, inputs = fading(), prompts([9, 4])
    ids = [row(inputs, r)["input_ids"][0].tolist() for r in range(2)]
    eos = plain(model, ids[0], NEW)[11]
    for new in (1, 2, 7, NEW):
        options = {**GREEDY, "max_new_tokens": new, "eos_token_id": eos, "pad_token_id": eos}
        got = generate(model, inputs, drafter=DRAFTERS[name](), **options)
        for r, tokens in enumerate(new_tokens(got.sequences, inputs)):
            want = plain(model, ids[r], new, eos=eos)
            assert tokens[: len(want)] == want
            assert set(tokens[len(want) :]) <= {eos}


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_view_scores_like_the_shortened_model_and_leaves_the_cache_alone(scale: float) -> None:
    model, inputs = fading(), prompts([9, 4])
    target, short = Target(model, guidance_scale=scale), Target(cut(fading(), 2))
    target.prefill(inputs)
    short.scale = scale
    short.prefill(inputs)
    seen = view(target, 0, 2)
    for kept in ([[0, 2, 4], [0]], [[0, 1], [0, 2, 4, 5]]):
        held = [layer.keys for layer in target.cache.stock.layers]
        lend(target, [seen], 2)
        got, want = seen.score([TREE, TREE]), short.score([TREE, TREE])
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert all(a.keys is b for a, b in zip(target.cache.stock.layers, held, strict=True))
        assert target.cache.tail == 0
        target.score([TREE, TREE])
        target.commit(kept)
        short.commit(kept)
    assert len(model.model.layers) == 4
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nested_exits_score_like_shortened_models_whatever_ran_before() -> None:
    model, inputs = fading(), prompts([9, 4])
    source = Target(model)
    source.prefill(inputs)
    nested = Nested(source, [1, 3, 4])
    chain = torch.tensor([[3, 7], [5, 2], [7, 7], [1, 9]])
    shorts = [Target(cut(model, layers)) for layers in (1, 3, 4)]
    for short in shorts:
        short.prefill(inputs)
    for _ in range(2):
        nested.begin()
        for step, deepest in enumerate((0, 2, 1, 2)):
            nested.push(chain[step])
            for at in range(deepest + 1):
                lines = [DraftTree.line(tokens) for tokens in chain[: step + 1].T.tolist()]
                want = shorts[at].score(lines)[:, -1]
                shorts[at].commit([[], []])
                torch.testing.assert_close(nested.logits(at), want, rtol=0, atol=1e-5)
    assert source.cache.tail == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_s2d_takes_the_first_exit_that_is_sure() -> None:
    model = fading(noise=0.02)
    ids = [3, 5, 7, 1, 9]
    drafter = S2D(model=model, exits=(1, 2), threshold=0.3, tokens=5)
    drafter.start(Target(fading()), [ids], [0])
    got = drafter.propose([[*ids, 4]], [True])[0].tokens.tolist()
    shorts, want, used = [cut(model, 1), cut(model, 2), model], [4], []
    with torch.no_grad():
        for step in range(5):
            left = shorts.copy() if step else shorts[2:]
            while left:
                used.append(left.pop(0))
                p = used[-1](torch.tensor([ids + want])).logits[0, -1].softmax(-1)
                if float(p.max()) >= 0.3:
                    break
            want.append(int(p.argmax()))
    assert got == want
    assert 5 < len(used) < 13  # neither always the first exit nor always all of them


def test_the_choice_maximises_tokens_per_layer() -> None:
    assert tokens_per_layer(0.5, 2, 3, 8) == pytest.approx((1 - 0.5**4) / 0.5 / 14)
    assert tokens_per_layer(1.0, 2, 3, 8) == pytest.approx(4 / 14)
    assert best({1: 0.0, 4: 0.0}, 8, 8)[1] == 0
    assert best({1: 1.0, 4: 1.0}, 8, 8) == (1, 8)
    assert best({1: 0.05, 4: 0.99}, 8, 8) == (4, 8)
    layer, tokens = best({1: 0.6, 2: 0.7}, 8, 8)
    assert layer in (1, 2)
    assert 0 < tokens < 8


def test_shares_are_those_of_the_exits_own_guesses() -> None:
    model, inputs = fading(), prompts([9, 4])
    drafter = DynamicExit(layers=(1, 3), decay=1.0)
    got = generate(model, inputs, drafter=drafter, guidance_scale=2.0, **GREEDY)
    for layer in (1, 3):
        short, hits = cut(model, layer), 1
        for r in range(2):
            new = new_tokens(got.sequences, inputs)[r]
            ids = row(inputs, r)["input_ids"][0].tolist()
            for at in range(1, NEW):
                with torch.no_grad():
                    c = short(torch.tensor([ids + new[:at]])).logits[0, -1]
                    u = short(torch.tensor([ids[-1:] + new[:at]])).logits[0, -1]
                hits += int((u + 2 * (c - u)).argmax()) == new[at]
        assert drafter._hits[layer] == hits
    assert drafter._trials == 2 + 2 * (NEW - 1)


def test_an_exit_that_cannot_pay_is_not_used_but_watched() -> None:
    drafter = DynamicExit(layers=(3,), decay=1.0)  # worth it from 3 hits in 4 on
    got = generate(llama(layers=4), prompts([9]), drafter=drafter, **GREEDY)
    assert got.stats.drafted == got.stats.drafter_forwards == 0
    assert drafter._trials == 2 + NEW - 1
    assert drafter._hits[3] > 1


@pytest.mark.parametrize("drafter", ["earlyexit", "dynamicexit"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_images_are_read_once(family: str, drafter: str) -> None:
    model, _ = tiny_model(family)
    options = {"max_new_tokens": 12, "do_sample": False}
    want = model.generate(**batch(family, "image", (0, 1)), **options)
    got = generate(model, batch(family, "image", (0, 1)), drafter=drafter, **options)
    assert torch.equal(got.sequences, want)


def test_image_tokens_of_a_visual_autoregressive_model() -> None:
    model, inputs = emu3(), prompts([9, 4], vocabulary=20)
    got = generate(model, inputs, drafter="earlyexit", guidance_scale=3.0, **GREEDY)
    for r, tokens in enumerate(new_tokens(got.sequences, inputs)):
        want = plain(model, row(inputs, r)["input_ids"][0].tolist(), NEW, scale=3.0, eos=2)
        assert tokens[: len(want)] == want


def wrapped() -> Any:
    model = fading().__class__(fading().config).eval()
    model.model.forward = model.model.forward
    return model


def no_layers() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2)).eval()


@pytest.mark.parametrize(
    ("model", "drafter", "message"),
    [
        (fading, "earlyexit(exit=4)", "from 1 to 3 in a model of 4 layers"),
        (lambda: llama(layers=1), "earlyexit", "model of 1 layers"),
        (fading, "earlyexit(tokens=0)", "tokens >= 1"),
        (fading, "dynamicexit(layers=(0, 2))", "from 1 to 3"),
        (lambda: llama(layers=1), "dynamicexit", "model of 1 layers"),
        (fading, "dynamicexit(decay=0)", "decay in"),
        (fading, "s2d", "needs model="),
        (wrapped, "earlyexit", "wrapped"),
        (no_layers, "earlyexit", "GPT2LMHeadModel has none"),
        (no_layers, "dynamicexit", "GPT2LMHeadModel has none"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(model: Any, drafter: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        generate(model(), prompts([5]), drafter=drafter, do_sample=False, max_new_tokens=4)
    assert "\n" not in str(caught.value)


def test_s2d_refuses_exits_that_are_not_there() -> None:
    for exits in ((), (4,), (2, 1)):
        with pytest.raises(InputError, match="ascending from 1 to 3"):
            S2D(model=fading(), exits=exits)
    with pytest.raises(InputError, match="temperature 0"):
        S2D(model=fading(), exits=(1,), temperature=1.0)


def test_a_part_shares_every_weight() -> None:
    model = fading()
    short = part(model, 1, 3)
    mine = {id(p) for p in model.parameters()}
    assert {id(p) for p in short.parameters()} < mine
    assert [id(x) for x in short.model.layers] == [id(x) for x in model.model.layers[1:3]]
