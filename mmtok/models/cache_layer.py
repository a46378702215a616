"""A KV cache layer that holds fewer entries than the tokens it has seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer


class ShortLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """Keys and values of the prompt's survivors, then of every token generated after them.

    Its length, as the model reads it for positions and masks, keeps counting the evicted tokens.

    Args:
        keys, values: (B, G, S, h) of the whole prompt.
        index: (B, G, K) places of the survivors; each KV head has its own.
        real: (B, K) bool, False at the padding on the left of rows that kept fewer.

    Attributes:
        place: `index`.
        real: as given.
        gone: tokens of the prompt, padding included, that this layer no longer holds.
    """

    def __init__(self, keys: Tensor, values: Tensor, index: Tensor, real: Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = take(keys, index), take(values, index)
        self.place, self.real = index, real
        self.gone = keys.shape[-2] - index.shape[-1]
        self.is_initialized = True
        self._all_real = bool(real.all())

    def get_seq_length(self) -> int:
        """Tokens seen so far, evicted ones included."""
        return int(super().get_seq_length()) + self.gone if self.is_initialized else 0

    def visible(self, new: int) -> Tensor | None:
        """(B, 1, new, stored + new) bool: what `new` tokens may attend to; None if everything."""
        if new == 1 and self._all_real:
            return None
        past = self.stored_real()[:, None].expand(-1, new, -1)
        causal = torch.ones(new, new, dtype=torch.bool, device=past.device).tril()
        return torch.cat([past, causal.expand(len(past), -1, -1)], dim=-1)[:, None]

    def stored_real(self) -> Tensor:
        """(B, stored) bool, False at padding."""
        generated = self.keys.shape[-2] - self.real.shape[1]
        return torch.cat([self.real, self.real.new_ones(len(self.real), generated)], dim=1)

    def reset(self) -> None:
        """Forget everything: the layer starts again as an ordinary one."""
        super().reset()
        self.place, self.real = self.place[..., :0], self.real[:, :0]
        self.gone, self._all_real = 0, True

    def _not_by_row(self, *args: Any) -> None:
        raise NotImplementedError("rows of a shortened KV cache cannot be copied or reordered")

    reorder_cache = batch_repeat_interleave = batch_select_indices = _not_by_row


def take(x: Tensor, index: Tensor) -> Tensor:
    """(B, G, K, h) entries of (B, G, S, h) at (B, G, K) places."""
    return x.gather(2, index[..., None].expand(*index.shape, x.shape[-1]))


def shorten(layer: DynamicLayer, kept: list[Tensor]) -> ShortLayer:
    """The cache layer without what was not kept.

    Args:
        layer: keys and values (B, G, S, h) of the whole prompt.
        kept: per prompt, (G, k) ascending places.
    """
    width = max(index.shape[1] for index in kept)
    padded = [pad(index, (width - index.shape[1], 0)) for index in kept]
    real = [
        pad(torch.ones_like(index[0], dtype=torch.bool), (width - len(index[0]), 0))
        for index in kept
    ]
    return ShortLayer(layer.keys, layer.values, torch.stack(padded), torch.stack(real))
