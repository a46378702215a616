"""Interruptions, own loops and calls that `reduced` refuses rather than answer wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmtok import InputError, reduced
from tests.conftest import batch, tiny_model

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
SENTENCES = "sentencekv(keep=0.9, read=0.5, start=2, recent=2, window=4, threshold=0)"


@pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "a2sf(keep=0.5)", SENTENCES])
@pytest.mark.parametrize("forward", [1, 3])  # the prompt's, and a decode step's
def test_an_interrupt_leaves_no_mode_open(spec: str, forward: int) -> None:
    """Nor does it disturb the next prompt of the same block."""
    model, _ = tiny_model("llava")
    inputs, calls = batch("llava", "image"), 0

    def stop(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == forward:
            raise KeyboardInterrupt

    want = model.generate(**inputs, **GREEDY)
    with reduced(model, spec):
        short = model.generate(**inputs, **GREEDY)
        hook = model.get_decoder().layers[0].mlp.gate_proj.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model.generate(**inputs, **GREEDY)
        hook.remove()
        assert torch.equal(model.generate(**inputs, **GREEDY), short)
        calls, hook = 0, model.get_decoder().layers[0].mlp.gate_proj.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            model.generate(**inputs, **GREEDY)
        hook.remove()
    assert torch.overrides._len_torch_function_stack() == 0
    assert torch.equal(model.generate(**inputs, **GREEDY), want)
