"""How the cache seam reads a decoder layer: its prompt, its rotation, its attention call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from mmtok.errors import InputError
from mmtok.pruning.cache import Prompt


class Select(TorchFunctionMode):
    """Puts the attention that `attend` computes in place of a layer's own, where it gives one."""

    def __init__(self, attend: Callable[[Tensor, float], Tensor | None]) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            scale = kwargs.get("scale") or args[0].shape[-1] ** -0.5
            if (out := self.attend(args[0], scale)) is not None:
                return out
        return func(*args, **kwargs)


Reached = tuple[Tensor, Tensor]
"""Places in the prompt (B, n) of the tokens that reach a layer, and whether each is real."""


def read_by(prompt: Prompt, reached: Reached | None) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer reads of a prompt: valid (B, n) and visual (B, n) bool, slots (B, n) int64."""
    if reached is None:
        slot = torch.arange(prompt.valid.shape[1], device=prompt.valid.device)
        return prompt.valid, prompt.visual, slot.expand_as(prompt.valid)
    slot, real = reached
    valid = prompt.valid.gather(1, slot) & real
    return valid, prompt.visual.gather(1, slot) & valid, slot


def check_cache(cache: Any) -> None:
    """InputError unless a KV cache of this kind can be shorter than the prompt."""
    from transformers import DynamicCache

    if not isinstance(cache, DynamicCache) or cache.offloading:
        raise InputError(
            "dropping inside the decoder or its KV cache needs the dynamic cache on the device, "
            f"got {type(cache).__name__}: leave out cache_implementation and pass no cache"
        )


def index_of(layer: nn.Module) -> int:
    """Which layer of a KV cache belongs to a decoder layer."""
    attention: Any = layer.self_attn
    return int(attention.layer_idx)


def rotary_of(
    layer: nn.Module, kwargs: dict[str, Any], item: int, place: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines (n, h) by which a layer rotated these places; None if it does not."""
    both = kwargs.get("position_embeddings")
    if both is None or not getattr(layer.self_attn, "use_rope", True):
        return None
    cos, sin = (x[item if len(x) > 1 else 0, place].float() for x in both)
    return cos, sin


def rotary_ahead(decoder: Any, layer: nn.Module, steps: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (steps, h) of the text positions 1, 2, ... in a layer."""
    position = torch.arange(1, steps + 1, device=next(layer.parameters()).device)[None]
    named = "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters
    attention: Any = layer.self_attn
    kind = {"layer_type": attention.layer_type} if named else {}
    like = torch.empty(0, device=position.device)
    cos, sin = decoder.rotary_emb(like, position, **kind)
    return cos[0], sin[0]
