"""The decoder seam: drop visual tokens inside the decoder, with stock layers and shorter KV caches.

Hooks on the decoder layers gather the hidden states, the rotary embeddings and the mask of the
prompt once a rule has decided, so every later layer computes and caches the survivors only. In
decode steps the mask's columns are gathered the same way. Nothing else of the model changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmtok.accounting.scopes import Meter
from mmtok.errors import InputError
from mmtok.models.taps import LayerAttention, tap
from mmtok.pruning.base import DecoderStage


@dataclass(frozen=True)
class _Dropped:
    """What the layers behind the stage read: (B, K) places in a prompt of `prompt` tokens.

    `real` is False at the padding on the left of rows that dropped more than others.
    """

    index: Tensor
    real: Tensor
    prompt: int


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
        score_flops: floating point operations spent on the rule.
    """

    def __init__(self, layers: nn.ModuleList, stage: DecoderStage, meter: Meter) -> None:
        self.layers, self.stage, self.meter = layers, stage, meter
        self.start(None, None)

    def start(self, visual: Tensor | None, valid: Tensor | None) -> None:
        """Get ready for a prompt: its (B, S) visual tokens and its (B, S) tokens but padding."""
        self.visual, self.valid = visual, valid
        self.survivors: Tensor | None = None
        self.score_flops = 0
        self._dropped: _Dropped | None = None

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
        self.survivors, self.score_flops = keep, attention.flops
        if bool(keep.all()):
            return
        counts = keep.sum(1)
        slot = (
            torch.arange(int(counts.max()), device=keep.device) - (counts.max() - counts)[:, None]
        )
        order = (~keep).int().argsort(dim=1, stable=True)  # survivors first, in order
        index = order.gather(1, slot.clamp_min(0))
        self._dropped = _Dropped(index=index, real=slot >= 0, prompt=keep.shape[1])

    def _shorten(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._dropped is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        kwargs = dict(kwargs)
        attention: Any = layer.self_attn
        cache: Any = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length(attention.layer_idx)
        if past:
            kwargs["attention_mask"] = _step_mask(
                self._dropped,
                past=past,
                stored=cache.layers[attention.layer_idx].keys.shape[-2],
                new=hidden.shape[1],
                window=getattr(attention, "sliding_window", None),
            )
        else:
            kwargs |= _shorten_prompt(self._dropped, kwargs)
            if hidden.shape[1] == self._dropped.prompt:
                hidden = _rows(hidden, self._dropped.index, dim=1)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": hidden}


def _shorten_prompt(dropped: _Dropped, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The layer's arguments that run along the prompt, for the survivors only."""
    short: dict[str, Any] = {"attention_mask": _prompt_mask(dropped, kwargs.get("attention_mask"))}
    if isinstance(place := kwargs.get("position_ids"), Tensor):
        short["position_ids"] = _rows(place, dropped.index, dim=-1, batch=-2)
    if (rotary := kwargs.get("position_embeddings")) is not None:
        short["position_embeddings"] = tuple(
            _rows(x, dropped.index, dim=-2, batch=-3) for x in rotary
        )
    return short


def _prompt_mask(dropped: _Dropped, mask: Tensor | None) -> Tensor | None:
    size = dropped.index.shape[1]
    if mask is None:
        if bool(dropped.real.all()):
            return None  # causal, no padding: the layer's own fast path
        causal = torch.ones(size, size, dtype=torch.bool, device=dropped.index.device).tril()
        return _block(causal[None, None], ~dropped.real)
    if mask.shape[-1] != dropped.prompt:
        raise InputError("dropping tokens inside the decoder does not work with a static cache")
    mask = _rows(_rows(mask, dropped.index, dim=-2), dropped.index, dim=-1)
    return _block(mask, ~dropped.real)


def _step_mask(
    dropped: _Dropped, *, past: int, stored: int, new: int, window: int | None
) -> Tensor | None:
    """Which cached and new tokens the new ones may attend to; None if all.

    Args:
        dropped: the survivors of the prompt.
        past: tokens this layer has seen, survivors and generated ones.
        stored: how many of them its cache still holds, the latest ones.
        new: tokens of this step.
        window: reach of a sliding window, counted in tokens of the full prompt.
    """
    batch, size = dropped.index.shape
    end = dropped.prompt + past - size + new
    later = torch.arange(dropped.prompt, end, device=dropped.index.device).expand(batch, -1)
    place = torch.cat([dropped.index, later], dim=1)[:, None, -(stored + new) :]
    real = torch.cat([dropped.real, torch.ones_like(later, dtype=torch.bool)], dim=1)
    query = later[:, -new:, None]
    seen = real[:, None, -(stored + new) :] & (place <= query)
    if window:
        seen &= place > query - window
    return None if bool(seen.all()) else seen[:, None]


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
    own = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
    columns = hidden[:, None, None, :] & ~own
    if mask.dtype == torch.bool:
        return mask & ~columns
    return mask.masked_fill(columns, torch.finfo(mask.dtype).min)
