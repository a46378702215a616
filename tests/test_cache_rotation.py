"""What policies are told of a layer's rotation: queries before it, and the positions to come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mmtok import reduced
from mmtok.pruning.base import Reducer
from mmtok.pruning.cache import CachePolicy, Entries
from mmtok.pruning.methods.expectedattention import turned
from tests.conftest import batch, tiny_model

AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class Look(Reducer):
    """Keeps all but the last entry of the last layer, and remembers what it was shown."""

    shown: list[Any] = field(default_factory=list)

    def in_cache(self, layers: int) -> CachePolicy | None:
        shown = self.shown

        class Policy(CachePolicy):
            reads_queries = True

            def count(self, layer: int, entries: int, visual: int) -> int:
                return entries - (layer == layers - 1)

            def keep(self, entries: Entries) -> torch.Tensor:
                shown.append((entries.queries(), entries.rotary, entries.ahead(AHEAD)))
                return torch.arange(len(entries) - 1).expand(len(entries.keys), -1)

        return Policy()


@pytest.mark.parametrize(
    "family", ["llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3"]
)
def test_rotation_is_undone_and_foreseen(family: str) -> None:
    model, _ = tiny_model(family)
    layer = model.get_decoder().layers[-1]
    attention, look = layer.self_attn, Look()
    before: list[torch.Tensor] = []
    rotary: list[Any] = []
    hooks = [
        getattr(attention, "q_norm", attention.q_proj).register_forward_hook(
            lambda module, args, output: before.append(output)
        ),
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: rotary.append(kwargs["position_embeddings"]),
            with_kwargs=True,
        ),
    ]
    try:
        with reduced(model, look):
            options = {"max_new_tokens": AHEAD + 1, "do_sample": False, "eos_token_id": None}
            model.generate(**batch(family, "image"), **options)
    finally:
        for hook in hooks:
            hook.remove()
    heads = attention.config.num_attention_heads
    raw = before[0].view(*before[0].shape[:2], heads, -1) if before[0].ndim == 3 else before[0]
    raw = raw if raw.shape[1] == heads else raw.transpose(1, 2)
    mask = batch(family, "image")["attention_mask"].bool()
    for item, (query, (cos, sin), (more_cos, more_sin)) in enumerate(look.shown):
        back = turned(query, cos, -sin)
        torch.testing.assert_close(back, raw[item][:, mask[item]], rtol=1e-5, atol=1e-5)
        for step in range(AHEAD):
            real_cos = rotary[1 + step][0].expand(len(mask), -1, -1)[item, 0]
            want = cos[-1] * more_cos[step] - sin[-1] * more_sin[step]
            torch.testing.assert_close(real_cos, want, rtol=1e-4, atol=1e-5)
