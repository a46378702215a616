"""A KV cache whose visual entries come and go: all are stored, few are read.

The decode stage of DyCoke (arXiv 2411.15024), as a cache policy: the new token's attention to the
image in one layer decides which visual entries later layers read. The choice stays until that
attention changes its direction; what was not read may return.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mmtok.pruning.cache import CachePolicy, Prompt, Stored
from mmtok.pruning.rank import top


class VisualRecall(CachePolicy):
    """Read the visual entries that the newest token attends to.

    Args:
        keep_count: visual entries stored -> visual entries read.
        layer: looks at all of them; the layers behind read what it chose. Where that layer has a
            sliding window, the next one without looks.
        refresh: choose anew when the cosine between the attention of consecutive tokens, mean
            over heads, falls below this.
    """

    selects = True

    def __init__(
        self, keep_count: Callable[[int], int], *, layer: int = 3, refresh: float = 0.9
    ) -> None:
        self.keep_count, self.layer, self.refresh = keep_count, layer, refresh

    def begin(self, prompt: Prompt) -> None:
        """Nothing has been looked at yet."""
        self.visual = prompt.visual
        self.shown = torch.zeros_like(prompt.visual)
        self.last: Tensor | None = None
        self.looked = False

    def token(self, ids: Tensor | None) -> None:
        """The first layer of this step that may look, will."""
        self.looked = False

    def step(self, stored: Stored) -> Tensor | None:
        """The text, and the visual entries last chosen."""
        if stored.layer < self.layer:
            return None
        if not self.looked:
            self._look(stored)
            self.looked = True
            return None
        visual = by_slot(self.visual, stored.slot)
        shown = by_slot(self.shown, stored.slot)
        read = stored.real[:, None].repeat(1, visual.shape[1], 1)
        read[..., : visual.shape[2]] &= ~visual | shown
        return read

    def _look(self, stored: Stored) -> None:
        query, keys = stored.query.float(), stored.keys.float()
        self.flops += 2 * query.shape[2] * keys.numel()
        scores = query @ keys.transpose(2, 3) * stored.scale
        weight = scores.masked_fill(~stored.real[:, None, None], -torch.inf).softmax(-1)
        kept = stored.slot.shape[2]
        seen = torch.zeros_like(self.visual, dtype=torch.float32)
        seen.scatter_add_(1, stored.slot[:, 0], weight.mean((1, 2))[:, :kept])
        there = torch.zeros_like(self.visual)
        for row in range(len(there)):
            there[row, stored.slot[row, 0][stored.real[row, :kept]]] = True
        there &= self.visual
        seen = seen.masked_fill(~there, 0)
        stale = torch.ones(len(seen), dtype=torch.bool, device=seen.device)
        if self.last is not None:
            stale = cosine_similarity(seen, self.last, dim=1) < self.refresh
        self.last = seen
        for row in stale.nonzero().squeeze(1).tolist():
            places = there[row].nonzero().squeeze(1)
            self.shown[row] = False
            self.shown[row, places[top(seen[row, places], self.keep_count(len(places)))]] = True


def by_slot(flags: Tensor, slot: Tensor) -> Tensor:
    """(B, G, K) of (B, S) flags at the prompt's slots (B, G, K)."""
    return flags[:, None].expand(-1, slot.shape[1], -1).gather(2, slot)
