"""Dropping and merging inside the decoder: equal to masking, truly shorter, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mmtok import InputError, reduced
from mmtok.models.cache_name import cache_in
from mmtok.models.reduction import Reduction
from mmtok.models.survivors import Survivors
from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage, keeping
from mmtok.tokens import Selection
from tests.conftest import batch, tiny_model

GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
DETAIL = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
Said = list[tuple[int, int, Selection]]


def uneven(prompt: DecoderPrompt) -> Selection:
    """Drop a share of the tokens that differs from prompt to prompt."""
    keep = torch.ones(len(prompt.visual), dtype=torch.bool)
    keep[:: 2 + prompt.item] = False
    return keeping(keep.nonzero().squeeze(1))


def pairs(prompt: DecoderPrompt) -> Selection:
    """Merge every token of odd place into the one before it."""
    n = len(prompt.visual)
    source, index = torch.arange(n), torch.arange(0, n, 2)
    slot = source // 2
    total = torch.zeros(len(index)).index_add_(0, slot, prompt.size)
    weight = prompt.size / total[slot]
    return Selection(indices=[index], merge=[(source, slot, weight)])


@dataclass(frozen=True, kw_only=True)
class InDecoder(Reducer):
    """Apply given rules in front of given layers, and remember what they said."""

    rules: dict[int, Callable[[DecoderPrompt], Selection]]
    said: Said = field(default_factory=list)

    def in_decoder(self, layers: int) -> list[DecoderStage]:
        def heard(layer: int, prompt: DecoderPrompt) -> Selection:
            said = self.rules[layer](prompt)
            self.said.append((layer, prompt.item, said))
            return said

        return [
            DecoderStage(layer=layer, rule=lambda prompt, layer=layer: heard(layer, prompt))
            for layer in self.rules
        ]


def reached(left: Survivors) -> torch.Tensor:
    """(B, S) bool, the tokens of the whole prompt that reach a layer."""
    mask = torch.zeros(len(left.index), left.prompt, dtype=torch.bool)
    for row, index, real in zip(mask, left.index, left.real, strict=True):
        row[index[real]] = True
    return mask


def masked_reference(model: Any, lefts: list[Survivors], said: Said, visual: Any) -> ExitStack:
    """The same in full length: every layer reads all places, dropped ones are masked out."""

    def hide(layer: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        new, survivors = hidden.shape[1], reached(lefts[layer])
        prompt = survivors.shape[1]
        if new == prompt:
            hidden = merged(layer, hidden)
        mask, cache = kwargs.get("attention_mask"), cache_in(kwargs)
        past = cache.get_seq_length(layer)
        total = new + (cache.layers[layer].keys.shape[-2] if past else 0)
        if mask is None:
            mask = torch.ones(new, total, dtype=torch.bool).tril(total - new)[None, None]
        seen = torch.ones(len(survivors), past + new, dtype=torch.bool)
        seen[:, :prompt] = survivors
        seen = seen[:, -total:]
        own = torch.zeros(new, total, dtype=torch.bool)
        own[torch.arange(new), torch.arange(total - new, total)] = True
        allowed = seen[:, None, None, :] | own
        if mask.dtype == torch.bool:
            mask = mask & allowed
        else:
            mask = mask.expand(len(survivors), 1, new, total).masked_fill(~allowed, -1e30)
        return (hidden, *args[1:]), kwargs | {"attention_mask": mask}

    def merged(layer: int, hidden: Any) -> Any:
        hidden = hidden.clone()
        for at, item, selection in said:
            if at == layer and selection.merge is not None:
                places = (reached(lefts[layer - 1])[item] & visual[item]).nonzero().squeeze(1)
                source, slot, weight = selection.merge[0]
                old = hidden[item, places]
                for place, target in enumerate(selection.indices[0].tolist()):
                    fed = slot == place
                    new = (old[source[fed]] * weight[fed, None]).sum(0)
                    hidden[item, places[target]] = new
        return hidden

    stack = ExitStack()
    for layer, block in enumerate(model.get_decoder().layers):
        if layer and not lefts[layer].whole:

            def hook(module: Any, args: Any, kwargs: Any, layer: int = layer) -> Any:
                return hide(layer, module, args, kwargs)

            stack.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
    return stack


RUNS = {
    "drop-padded": ({2: uneven}, (0, 1)),
    "drop-single": ({2: uneven}, (0,)),
    "drop-even": ({2: uneven}, (0, 0)),
    "drop-drop": ({2: uneven, 3: uneven}, (0, 1)),
    "merge-drop": ({2: pairs, 3: uneven}, (0, 1)),
    "drop-merge": ({2: uneven, 3: pairs}, (0, 1)),
}


@pytest.mark.parametrize(("rules", "rows"), RUNS.values(), ids=RUNS.keys())
def test_it_equals_masking(case: tuple[str, str], rules: Any, rows: Any) -> None:
    model, _ = tiny_model(case[0])
    reducer = InDecoder(rules=rules)
    with reduced(model, reducer) as reduction:
        got = model.generate(**batch(*case, rows=rows), **DETAIL)
        assert reduction.seams.decoder is not None
        lefts = [left for left in reduction.seams.decoder.left if left is not None]
        visual = torch.zeros(lefts[0].index.shape, dtype=torch.bool)
        for part in reduction.media:
            visual.view(-1)[torch.cat(part.places)] = True
    with masked_reference(model, lefts, reducer.said, visual):
        want = model.generate(**batch(*case, rows=rows), **DETAIL)
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    steps = len(got.logits) - 1
    lengths = [cache_in(got).get_seq_length(i) for i in range(4)]
    assert lengths == [int(reached(left).sum(1).max()) + steps for left in lefts]
    assert lengths[0] == lengths[1] == batch(*case, rows=rows)["input_ids"].shape[1] + steps
    assert lengths[2] < lengths[1]
    assert (lengths[3] < lengths[2]) == (3 in rules)


@pytest.mark.parametrize("window", [8, 30])
def test_a_sliding_window_counts_places_of_the_whole_prompt(window: int) -> None:
    model = deepcopy(tiny_model("gemma3")[0])
    model.config.text_config.sliding_window = window
    for layer in model.get_decoder().layers:
        layer.self_attn.sliding_window = layer.self_attn.sliding_window and window
    with reduced(model, InDecoder(rules={1: uneven, 2: uneven})) as reduction:
        got = model.generate(**batch("gemma3", "image"), **DETAIL)
        assert reduction.seams.decoder is not None
        lefts = [left for left in reduction.seams.decoder.left if left is not None]
    with masked_reference(model, lefts, [], None):
        want = model.generate(**batch("gemma3", "image"), **DETAIL)
    wide, narrow = (
        m.generate(**batch("gemma3", "image"), **DETAIL).logits[0]
        for m in (tiny_model("gemma3")[0], model)
    )
    assert not torch.allclose(narrow, wide), "the window matters here"
    for a, b in zip(got.logits, want.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_sizes_count_what_was_merged() -> None:
    model, _ = tiny_model("llava")
    sizes: list[list[float]] = []

    def look(prompt: DecoderPrompt) -> Selection:
        sizes.append(prompt.size.tolist())
        return pairs(prompt)

    with reduced(model, InDecoder(rules={1: pairs, 2: look, 3: look})):
        model.generate(**batch("llava", "image"), **GREEDY)
    assert sizes == [[2.0] * 18, [2.0] * 36, [4.0] * 9, [4.0] * 18]


def test_nothing_is_left_on_the_model_after_an_exception() -> None:
    model, _ = tiny_model("llava")

    def hooks() -> list[int]:
        return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]

    before = hooks()

    def failing(prompt: DecoderPrompt) -> Selection:
        raise RuntimeError("stop")

    with (
        pytest.raises(RuntimeError, match="stop"),
        reduced(model, ["todre(keep=0.2)", InDecoder(rules={1: uneven, 2: failing})]),
    ):
        model.generate(**batch("llava", "image"), **GREEDY)
    with pytest.raises(InputError, match="placeholders"), reduced(model, "random(keep=3)"):
        model.generate(**(batch("llava", "image") | {"input_ids": torch.ones(2, 9).long()}))
    assert hooks() == before
    assert "generate" not in vars(model)


def test_text_alone_passes_through() -> None:
    model, _ = tiny_model("llava")
    ids = torch.arange(3, 9)[None]
    want = model.generate(input_ids=ids, **GREEDY)
    logits = model(input_ids=ids).logits
    with reduced(model, ["random(keep=2)", InDecoder(rules={2: uneven})]):
        model.generate(**batch("llava", "image"), **GREEDY)
        assert torch.equal(model.generate(input_ids=ids, **GREEDY), want)
        assert torch.equal(model(input_ids=ids).logits, logits)


def test_what_cannot_work_is_refused_when_built() -> None:
    model, _ = tiny_model("qwen3_vl")
    with pytest.raises(InputError, match="visual features of their own"):
        Reduction(model, [InDecoder(rules={1: uneven})])
    model, _ = tiny_model("llava")
    with pytest.raises(InputError, match="two stages drop tokens in front of decoder layer 2"):
        Reduction(model, [InDecoder(rules={2: uneven}), InDecoder(rules={2: pairs})])
    with pytest.raises(InputError, match="layers 1 to 3, not 4"):
        Reduction(model, [InDecoder(rules={4: uneven})])


def test_beams_are_refused() -> None:
    model, _ = tiny_model("llava")
    with (
        reduced(model, InDecoder(rules={2: uneven})),
        pytest.raises(InputError, match="several return sequences"),
    ):
        model.generate(**batch("llava", "image"), num_beams=2, **GREEDY)


def test_a_prompt_in_pieces_is_refused() -> None:
    model, _ = tiny_model("llava")
    with (
        reduced(model, InDecoder(rules={2: uneven})),
        pytest.raises(InputError, match="in one prefill"),
    ):
        model.generate(**batch("llava", "image"), prefill_chunk_size=16, **GREEDY)
