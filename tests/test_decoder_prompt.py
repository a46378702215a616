"""What a rule sees: attention of either side, embeddings, neurons, and the place of each token."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from mmtok import reduced
from mmtok.pruning.base import Reducer
from mmtok.pruning.decoder import DecoderPrompt, DecoderStage, keeping
from mmtok.tokens import Selection
from tests.conftest import batch, tiny_model
from tests.test_decoder_seam import DETAIL, InDecoder, uneven


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_own_attention_is_what_the_layer_would_compute(family: str) -> None:
    """Read in front of a layer, the rows are those the layer then uses when nothing leaves."""
    model, _ = tiny_model(family)
    seen: dict[str, list[torch.Tensor]] = {"own_attention": [], "attention": []}

    @dataclass(frozen=True, kw_only=True)
    class Look(Reducer):
        def in_decoder(self, layers: int) -> list[DecoderStage]:
            def look(name: str, prompt: DecoderPrompt) -> Selection:
                seen[name].append(prompt.rows(prompt.last))
                return keeping(torch.arange(len(prompt.visual)))

            return [
                DecoderStage(layer=2, rule=lambda p: look("own_attention", p), reads=own),
                DecoderStage(layer=3, rule=lambda p: look("attention", p), reads=behind),
            ]

    own, behind = frozenset({"own_attention"}), frozenset({"attention"})
    want = model.generate(**batch(family, "image"), **DETAIL)
    with reduced(model, Look()):
        got = model.generate(**batch(family, "image"), **DETAIL)
    assert all(torch.equal(a, b) for a, b in zip(got.logits, want.logits, strict=True))
    assert len(seen["attention"]) == 2
    for a, b in zip(*seen.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_a_rule_sees_the_prompt() -> None:
    """Embeddings follow their tokens, neurons are those behind, cells name image and place."""
    model, _ = tiny_model("llava")
    inputs = batch("llava", "image")
    seen: list[DecoderPrompt] = []

    def look(prompt: DecoderPrompt) -> Selection:
        seen.append(prompt)
        return keeping(torch.arange(len(prompt.visual)))

    @dataclass(frozen=True, kw_only=True)
    class Look(Reducer):
        def in_decoder(self, layers: int) -> list[DecoderStage]:
            reads = frozenset({"embeddings", "activation"})
            return [DecoderStage(layer=3, rule=look, reads=reads)]

    fired: list[torch.Tensor] = []
    hook = (
        model.get_decoder()
        .layers[2]
        .mlp.down_proj.register_forward_hook(lambda module, args, output: fired.append(args[0]))
    )
    with reduced(model, [InDecoder(rules={2: uneven}), Look()]):
        model(**inputs)
    hook.remove()
    words = model.get_input_embeddings()
    for item, prompt in enumerate(seen):
        ids = inputs["input_ids"][item]
        text = ids[inputs["attention_mask"][item].bool() & (ids != model.config.image_token_id)]
        assert prompt.embeddings is not None
        assert torch.equal(prompt.embeddings[prompt.text], words(text))
        assert torch.equal(prompt.activation, fired[0][item])
        images = [36] if item == 0 else [36, 36]
        cells = [(place // 6, place % 6) for n in images for place in range(n)]
        kept = [i for i in range(sum(images)) if i % (2 + item)]
        assert [tuple(c) for c in prompt.cell[:, 2:].tolist()] == [cells[i] for i in kept]
        assert len(prompt.cell[:, 0].unique()) == len(images)
