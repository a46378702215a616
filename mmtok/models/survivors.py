"""Which tokens of a prompt reach a decoder layer, and what that layer's arguments become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtok.errors import InputError


@dataclass(frozen=True)
class Survivors:
    """The tokens of B prompts that reach a layer, padded on the left to K.

    Attributes:
        index: (B, K) int64 places in the prompt.
        real: (B, K) bool, False at padding.
        size: (B, K) fp32, tokens each one has been merged from.
        prompt: length S of the prompt, padding included.
        whole: whether nothing has been dropped: the layer runs as it would without mmtok.
    """

    index: Tensor
    real: Tensor
    size: Tensor
    prompt: int
    whole: bool = False

    @staticmethod
    def all_of(real: Tensor) -> Survivors:
        """Every token of prompts whose (B, S) `real` tokens are no padding."""
        place = torch.arange(real.shape[1], device=real.device).expand(real.shape)
        return Survivors(
            place, real, torch.ones_like(real, dtype=torch.float32), real.shape[1], True
        )

    def keep(self, mask: Tensor, size: Tensor, hidden: Tensor) -> tuple[Survivors, Tensor]:
        """Those of them marked in (B, K) `mask`, with their sizes and (B, K, D) hidden states."""
        counts = mask.sum(1)
        longest = counts.max()
        slot = torch.arange(int(longest), device=mask.device) - (longest - counts)[:, None]
        order = (~mask).int().argsort(dim=1, stable=True)  # survivors first, in order
        local = order.gather(1, slot.clamp_min(0))
        left = Survivors(self.index.gather(1, local), slot >= 0, size.gather(1, local), self.prompt)
        return left, rows(hidden, local, dim=1)

    def arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer's arguments that run along the prompt, for the survivors only.

        Raises:
            InputError: the mask runs along something else, as with a static cache.
        """
        short: dict[str, Any] = {"attention_mask": self._prompt_mask(kwargs.get("attention_mask"))}
        if isinstance(place := kwargs.get("position_ids"), Tensor):
            short["position_ids"] = rows(place, self.index, dim=-1, batch=-2)
        if (rotary := kwargs.get("position_embeddings")) is not None:
            short["position_embeddings"] = tuple(
                rows(x, self.index, dim=-2, batch=-3) for x in rotary
            )
        return short

    def _prompt_mask(self, mask: Tensor | None) -> Tensor | None:
        size = self.index.shape[1]
        if mask is None:
            if bool(self.real.all()):
                return None  # causal, no padding: the layer's own fast path
            causal = torch.ones(size, size, dtype=torch.bool, device=self.index.device).tril()
            return _block(causal[None, None], ~self.real)
        if mask.shape[-1] != self.prompt:
            raise InputError("dropping tokens inside the decoder does not work with a static cache")
        mask = rows(rows(mask, self.index, dim=-2), self.index, dim=-1)
        return _block(mask, ~self.real)

    def step_mask(self, *, past: int, stored: int, new: int, window: int | None) -> Tensor | None:
        """Which cached and new tokens the new ones of a decode step may attend to; None if all.

        Args:
            past: tokens this layer has seen, survivors and generated ones.
            stored: how many of them its cache still holds, the latest ones.
            new: tokens of this step.
            window: reach of a sliding window, counted in tokens of the full prompt.
        """
        batch, size = self.index.shape
        end = self.prompt + past - size + new
        later = torch.arange(self.prompt, end, device=self.index.device).expand(batch, -1)
        place = torch.cat([self.index, later], dim=1)[:, None, -(stored + new) :]
        real = torch.cat([self.real, torch.ones_like(later, dtype=torch.bool)], dim=1)
        query = later[:, -new:, None]
        seen = real[:, None, -(stored + new) :] & (place <= query)
        if window:
            seen &= place > query - window
        return None if bool(seen.all()) else seen[:, None]


def rows(x: Tensor, index: Tensor, *, dim: int, batch: int = 0) -> Tensor:
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
