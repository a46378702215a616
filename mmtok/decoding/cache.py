"""A KV cache whose rows grow by different amounts: which slots are real, and how to drop the rest.

Rows of a batch accept different numbers of tokens. All keep the same number of slots; those a row
does not use are holes that the mask hides. When a quarter of the slots could go, they go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmtok.errors import InputError

_WASTE = 0.25


class RaggedCache:
    """Committed slots, and behind them a tail of draft nodes that may be rolled back.

    Attributes:
        stock: the transformers cache the model writes to.
        valid: (B, S) bool, committed slots that hold a token of their row.
        tail: draft slots behind the S committed ones.
    """

    def __init__(self, config: Any, mask: Tensor) -> None:
        from transformers import DynamicCache

        self.stock = DynamicCache(config=config)
        self.valid = mask.bool()
        self.tail = 0

    def check(self, filled: bool = False) -> None:
        """Refuse caches that cannot lose tokens in the middle.

        Args:
            filled: the prompt has been read.

        Raises:
            InputError: the model has sliding-window or recurrent layers, keeps its past elsewhere,
                or keeps less than the whole prompt.
        """
        from transformers.cache_utils import DynamicLayer

        odd = {type(x).__name__ for x in self.stock.layers if type(x) is not DynamicLayer}
        if odd:
            raise InputError(
                f"drafts need a cache that can be rolled back, this model has {', '.join(odd)}; "
                "use a model with full attention in every layer"
            )
        if not filled:
            return
        size = self.valid.shape[1]
        held = {layer.keys.shape[2] for layer in self.stock.layers}
        if held != {size}:
            raise InputError(
                f"drafts need every layer to keep the prompt's {size} tokens, this model keeps "
                f"{', '.join(map(str, sorted(held))) or 'none'}; inside mmtok.reduced, and with "
                "layers that attend to something else, decode without drafts"
            )

    def commit(self, kept: list[list[int]]) -> None:
        """Keep these tail slots of every row, in this order, and forget the other ones."""
        width = max(map(len, kept))
        device, size = self.valid.device, self.valid.shape[1]
        slots = torch.tensor([k + [0] * (width - len(k)) for k in kept], device=device) + size
        straight = all(k == list(range(len(k))) for k in kept)
        self._rewrite(size, slots.long() if width and not straight else None, size + width)
        counts = torch.tensor([len(k) for k in kept], device=device)
        fresh = torch.arange(width, device=device) < counts[:, None]
        self.valid = torch.cat([self.valid, fresh], 1)
        self.tail = 0
        self._pack()

    def _rewrite(self, start: int, slots: Tensor | None, end: int) -> None:
        """Copy `slots` (B, w) to `start`, unless they are there already, and cut at `end`."""
        for layer in self.stock.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name)
                if slots is not None:
                    index = slots[:, None, :, None]
                    moved = held.take_along_dim(index, dim=2)
                    held = torch.cat([held[:, :, :start], moved], 2)
                setattr(layer, name, held[:, :, :end])

    def _pack(self) -> None:
        size, needed = self.valid.shape[1], int(self.valid.sum(1).max())
        if size - needed <= _WASTE * size:
            return
        order = self.valid.long().argsort(dim=1, stable=True)[:, size - needed :]
        self._rewrite(0, order, needed)
        self.valid = self.valid.take_along_dim(order, dim=1)
