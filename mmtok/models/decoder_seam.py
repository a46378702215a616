"""The decoder seam: drop visual tokens inside the decoder, with stock layers and shorter KV caches.

Hooks on the decoder layers gather the hidden states, the rotary embeddings and the mask of the
prompt once a rule has decided, so every later layer computes and caches the survivors only. In
decode steps the mask's columns are gathered the same way. Nothing else of the model changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.taps import LayerAttention, tap
from mmtok.pruning.base import DecoderStage


class DecoderSeam:
    """Applies one DecoderStage to a stack of decoder layers while its context is open.

    Args:
        layers: the decoder's layers.
        stage: where and how to drop.
        meter: told that the stage "reduce.score" runs.

    Attributes:
        visual: (B, S) bool, visual tokens of the prompt about to run; set it before each prompt.
            While it is None the layers run untouched.
        survivors: (B, S) bool, prompt tokens that the layers behind the stage read; None before.
    """

    def __init__(self, layers: nn.ModuleList, stage: DecoderStage, meter: Meter) -> None:
        self.layers, self.stage, self.meter = layers, stage, meter
        self.visual: Tensor | None = None
        self.valid: Tensor | None = None
        self._clear()

    def start(self, visual: Tensor | None, valid: Tensor | None) -> None:
        """Get ready for a prompt: its (B, S) visual tokens and its (B, S) tokens but padding."""
        self._clear()
        self.visual, self.valid = visual, valid

    def _clear(self) -> None:
        self.survivors: Tensor | None = None
        self.index: Tensor | None = None  # (B, K) places of the survivors, left-padded
        self.real: Tensor | None = None  # (B, K) False at that padding

    @contextmanager
    def active(self) -> Iterator[None]:
        """Hook the layers; unhook them whatever happens."""
        with ExitStack() as stack:
            stack.enter_context(tap(self.layers[self.stage.layer], self._decide))
            for layer in self.layers[self.stage.layer + 1 :]:
                hook = layer.register_forward_pre_hook(self._shorten, with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _decide(self, attention: LayerAttention) -> None:
        if self.visual is None or self.survivors is not None:
            return
        with self.meter.stage("reduce.score"):
            keep = ~self.visual | self.stage.rule(attention, self.visual)
            if self.valid is not None:
                keep &= self.valid
        self.survivors = keep
        if bool(keep.all()):
            return
        counts = keep.sum(1)
        slot = torch.arange(int(counts.max()), device=keep.device) - (counts.max() - counts)[:, None]
        order = (~keep).int().argsort(dim=1, stable=True)  # survivors first, in order
        self.real = slot >= 0
        self.index = order.gather(1, slot.clamp_min(0))

    def _shorten(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if self.index is None or self.visual is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        prompt = self.visual.shape[1]
        kwargs = dict(kwargs)
        if hidden.shape[1] in (prompt, self.index.shape[1]) and hidden.shape[1] > 1:
            self._shorten_prompt(kwargs)
            if hidden.shape[1] == prompt:
                hidden = _rows(hidden, self.index, dim=1)
        else:
            past = kwargs["past_key_values"].get_seq_length(layer.self_attn.layer_idx)
            kwargs["attention_mask"] = self._step_mask(
                kwargs.get("attention_mask"), past + hidden.shape[1], hidden.shape[1]
            )
        if args:
            return (hidden, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden}

    def _shorten_prompt(self, kwargs: dict[str, Any]) -> None:
        assert self.index is not None
        kwargs["attention_mask"] = self._prompt_mask(kwargs.get("attention_mask"))
        if isinstance(kwargs.get("position_ids"), Tensor):
            kwargs["position_ids"] = _rows(kwargs["position_ids"], self.index, dim=-1, batch=-2)
        if kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = tuple(
                _rows(x, self.index, dim=-2, batch=-3) for x in kwargs["position_embeddings"]
            )

    def _prompt_mask(self, mask: Tensor | None) -> Tensor | None:
        assert self.index is not None and self.real is not None and self.visual is not None
        size = self.index.shape[1]
        if mask is None:
            if bool(self.real.all()):
                return None  # causal, no padding: the layer's own fast path
            causal = torch.ones(size, size, dtype=torch.bool, device=self.index.device).tril()
            own = torch.eye(size, dtype=torch.bool, device=self.index.device)
            return (causal & self.real[:, None, :] | own)[:, None]
        self._check_width(mask, self.visual.shape[1])
        mask = _rows(_rows(mask, self.index, dim=-2), self.index, dim=-1)
        return _block(mask, ~self.real)

    def _step_mask(self, mask: Tensor | None, total: int, new: int) -> Tensor | None:
        """The mask of a decode step: the survivors' columns, then those of the new tokens."""
        assert self.index is not None and self.real is not None and self.visual is not None
        batch, size = self.index.shape
        if mask is None:
            if bool(self.real.all()):
                return None
            later = torch.ones(batch, total - size, dtype=torch.bool, device=self.real.device)
            seen = torch.cat([self.real, later], dim=1)[:, None, None, :]
            return seen.expand(batch, 1, new, total).tril(total - new)
        prompt = self.visual.shape[1]
        self._check_width(mask, prompt + total - size)
        past = _block(_rows(mask[..., :prompt], self.index, dim=-1), ~self.real)
        return torch.cat([past, mask[..., prompt:].expand(batch, -1, -1, -1)], dim=-1)

    def _check_width(self, mask: Tensor, width: int) -> None:
        if mask.shape[-1] != width:
            raise InputError(
                f"a layer's mask covers {mask.shape[-1]} of {width} tokens: dropping tokens inside "
                "the decoder does not work past a sliding window or with a static cache"
            )


def _rows(x: Tensor, index: Tensor, *, dim: int, batch: int = 0) -> Tensor:
    """Gather (B, K) places along `dim`; an axis `batch` of size 1 is expanded to B first."""
    dim, batch = dim % x.ndim, batch % x.ndim
    shape = list(x.shape)
    shape[batch] = len(index)
    view = [1] * x.ndim
    view[batch], view[dim] = index.shape
    target = list(shape)
    target[dim] = index.shape[1]
    return x.expand(shape).gather(dim, index.view(view).expand(target))


def _block(mask: Tensor, hidden: Tensor) -> Tensor:
    """Hide the (B, K) columns marked in `hidden` from every row but their own."""
    if not bool(hidden.any()):
        return mask
    columns = hidden[:, None, None, :].expand_as(mask)
    if mask.shape[-2] == mask.shape[-1]:
        columns = columns & ~torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    if mask.dtype == torch.bool:
        return mask & ~columns
    return mask.masked_fill(columns, torch.finfo(mask.dtype).min)
