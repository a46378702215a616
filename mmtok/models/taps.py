"""Read the queries and keys of one attention layer while it runs, without changing how it runs.

A torch function mode, active inside that one layer only, sees the arguments of
`scaled_dot_product_attention`. The model stays on SDPA, nothing is patched, and only the attention
rows a method asks for are ever computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from mmtok.errors import InputError
from mmtok.models.cache_name import without_cache


@dataclass(kw_only=True)
class LayerAttention:
    """Queries and keys of one attention layer as the layer itself used them, after rotation.

    Attributes:
        query: (B, H, S, h).
        key: (B, H, S, h), heads repeated where the model groups them.
        mask: (B or 1, 1, S, S) bool or additive, as the layer got it, or None.
        causal: whether the layer masks the future by itself.
        scale: factor on the scores.
        flops: floating point operations spent on rows so far, in closed form.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    causal: bool
    scale: float
    flops: int = 0

    def rows(self, item: int, index: Tensor) -> Tensor:
        """(R, S) attention of the R positions `index` of one item, mean over heads, in fp32."""
        query, key = self.query[item][:, index].float(), self.key[item].float()
        self.flops += 2 * query.numel() * key.shape[1]
        scores = query @ key.transpose(-1, -2) * self.scale
        if self.mask is not None:
            mask = self.mask[item if len(self.mask) > 1 else 0][:, index]
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, -torch.inf)
            else:
                scores = scores + mask.float()
        elif self.causal:
            place = torch.arange(key.shape[1], device=index.device)
            scores = scores.masked_fill(place > index[:, None], -torch.inf)
        return scores.softmax(-1).mean(0)

    def sees(self, item: int, index: Tensor, target: Tensor) -> bool:
        """Whether any of the positions `index` may attend to any of the positions `target`."""
        if self.mask is None:
            return not self.causal or bool(index.max() >= target.min())
        mask = self.mask[item if len(self.mask) > 1 else 0][0][index][:, target]
        return bool(mask.any() if mask.dtype == torch.bool else (mask > -1e4).any())


class _KnownError(Exception):
    """Not a failure: queries and keys are known; the rest of the layer need not run."""


class _Tap(TorchFunctionMode):
    def __init__(self, *, stop: bool = False) -> None:
        super().__init__()
        self.seen: LayerAttention | None = None
        self.stop = stop

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            query, key = args[0], args[1]
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            if key.shape[1] != query.shape[1]:
                key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            self.seen = LayerAttention(
                query=query,
                key=key,
                mask=mask,
                causal=bool(kwargs.get("is_causal", False)),
                scale=kwargs.get("scale") or query.shape[-1] ** -0.5,
            )
            if self.stop:
                raise _KnownError
        return func(*args, **kwargs)


def probe(layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> LayerAttention:
    """Queries and keys `layer` would use on (B, S, D) `hidden`; nothing is cached.

    The layer's own code runs up to its attention, so norms and rotation are as it does them.

    Raises:
        InputError: the layer runs without scaled_dot_product_attention.
    """
    mode = _Tap(stop=True)
    with mode, suppress(_KnownError):
        layer.forward(hidden, **without_cache(kwargs))
    return _found(mode)


def _found(mode: _Tap) -> LayerAttention:
    if mode.seen is None:
        raise InputError(
            "this method reads attention and works with SDPA only: "
            "load the model with attn_implementation='sdpa'"
        )
    return mode.seen


def leave(modes: list[Any]) -> None:
    """Leave function modes that are still open: no hook hears of a KeyboardInterrupt."""
    while modes:
        modes.pop().__exit__(None, None, None)


@contextmanager
def tap(
    layer: nn.Module,
    use: Callable[[LayerAttention], None],
    when: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Hand the attention of every call of `layer` to `use`, as soon as the layer is done.

    Args:
        layer: a decoder or encoder layer, or an attention module.
        use: called once per call of the layer.
        when: asked before each call whether this one is of interest.

    Raises:
        InputError: the layer ran without scaled_dot_product_attention.
    """
    running: list[_Tap] = []

    def before(module: nn.Module, args: Any) -> None:
        leave(running)
        if when():
            running.append(_Tap())
            running[-1].__enter__()  # type: ignore[no-untyped-call]

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if not running:
            return
        mode = running.pop()
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if mode.seen is not None or output is not None:  # output is None after an exception
            use(_found(mode))

    hooks = [
        layer.register_forward_pre_hook(before),
        layer.register_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        leave(running)
        for hook in hooks:
            hook.remove()
