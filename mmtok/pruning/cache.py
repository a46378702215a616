"""Which KV entries survive the prefill: what the methods share.

A policy sees one prompt in one decoder layer at a time, without padding, so that no batch-mate can
change its choice. Each KV head chooses for itself; all heads of a layer keep the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from mmtok.errors import InputError
from mmtok.pruning.base import Reducer

if TYPE_CHECKING:
    from mmtok.models.taps import LayerAttention


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A batch of prompts as they enter the decoder.

    Attributes:
        ids: (B, S) token ids.
        valid: (B, S) bool, False at padding.
        visual: (B, S) bool.
        cell: (4, B, S) int64, image or clip of each visual token, and its (t, h, w); -1 at text.
    """

    ids: Tensor
    valid: Tensor
    visual: Tensor
    cell: Tensor


@dataclass(kw_only=True)
class Entries:
    """The KV entries of one prompt in one decoder layer, padding left out.

    Attributes:
        layer: which layer.
        item: which prompt of the batch.
        keys: (G, n, h) as cached, that is rotated.
        values: (G, n, h).
        visual: (n,) bool.
        place: (n,) int64 places in this layer, padding counted.
        attention: the layer's queries and mask, for policies that read them.
        rotary: cosines and sines (n, h) the layer rotated by, likewise; None if it does not.
        ahead: steps -> cosines and sines (steps, h) of positions 1, 2, ... steps.
        flops: floating point operations spent so far, in closed form.
    """

    layer: int
    item: int
    keys: Tensor
    values: Tensor
    visual: Tensor
    place: Tensor
    attention: LayerAttention | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    ahead: Callable[[int], tuple[Tensor, Tensor]] | None = None
    flops: int = 0

    def __len__(self) -> int:
        return self.keys.shape[1]

    @property
    def scale(self) -> float:
        """The factor on the layer's attention scores."""
        return self._seen().scale

    def _seen(self) -> LayerAttention:
        if self.attention is None:
            raise InputError("this policy reads queries: it must say so with reads_queries = True")
        return self.attention

    def queries(self) -> Tensor:
        """(H, n, h) in fp32, rotated."""
        return self._seen().query[self.item][:, self.place].float()

    def rows(self, index: Tensor) -> Tensor:
        """(H, R, n) attention of the entries `index` (R,) to all entries, in fp32."""
        seen = self._seen()
        query = seen.query[self.item][:, self.place[index]].float()
        heads, count, size = query.shape
        self.flops += 2 * query.numel() * len(self)
        grouped = query.reshape(len(self.keys), -1, size)
        scores = (grouped @ self.keys.float().transpose(1, 2) * seen.scale).view(heads, count, -1)
        if seen.mask is not None:
            mask = seen.mask[self.item if len(seen.mask) > 1 else 0][0]
            mask = mask[self.place[index]][:, self.place]
            if mask.dtype != torch.bool:
                return (scores + mask.float()).softmax(-1)
            scores = scores.masked_fill(~mask, -torch.inf)
        elif seen.causal:
            later = torch.arange(len(self), device=index.device) > index[:, None]
            scores = scores.masked_fill(later, -torch.inf)
        return scores.softmax(-1)

    def by_head(self, x: Tensor) -> Tensor:
        """(G, heads per group, ...) of (H, ...): the query heads that read each KV head."""
        groups = len(self.keys)
        return x.view(groups, len(x) // groups, *x.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A layer's cache in a decode step, the step's own token included as the last entry.

    Attributes:
        layer: which layer.
        query: (B, G, R, h) rotated queries of the new token, R query heads to each KV head.
        keys: (B, G, T, h).
        slot: (B, G, K) places of its K first entries in the prompt as it entered the decoder.
        real: (B, T) bool, False at padding.
        scale: the factor on the attention scores.
    """

    layer: int
    query: Tensor
    keys: Tensor
    slot: Tensor
    real: Tensor
    scale: float


class CachePolicy:
    """What stays in the KV cache of one batch of prompts, and what decode steps read of it.

    A new one is made for every batch, so it may hold state. The defaults keep and read everything.

    Attributes:
        reads_queries: whether `keep` reads queries or attention rows.
        selects: whether `step` may hide entries for the length of one step.
        flops: floating point operations spent in `step`, in closed form.
    """

    reads_queries: bool = False
    selects: bool = False
    flops: int = 0

    def begin(self, prompt: Prompt) -> None:
        """A prompt is about to enter the decoder."""

    def count(self, layer: int, entries: int, visual: int) -> int:
        """How many of a prompt's entries, `visual` of them visual, each KV head keeps."""
        return entries

    def keep(self, entries: Entries) -> Tensor:
        """(G, count) int64 places that stay, ascending; asked only where something must go."""
        raise NotImplementedError

    def token(self, ids: Tensor | None) -> None:
        """A decode step is about to begin, for tokens (B, 1); None if only embeddings are known."""

    def step(self, stored: Stored) -> Tensor | None:
        """(B, G, T) bool, what the new token reads; None if everything.

        Each row reads equally many entries in all its heads.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class CacheReducer(Reducer):
    """A method that ranks KV entries once, when the prefill of a layer is done.

    Attributes:
        keep: KV entries of the prompt that each layer and KV head keeps, text and visual alike: a
            number or a share of them. Tokens generated later are all kept.
        scope: "visual" lets visual entries alone compete, for `keep` of them; text stays.
    """

    reads_queries: ClassVar[bool] = False

    scope: Literal["all", "visual"] = "all"

    def check_protected(self, **fields: int) -> None:
        """InputError unless these numbers of always kept entries fit into `keep`."""
        for name in fields:
            self.check_number(name)
        if self.scope == "all" and isinstance(self.keep, int) and sum(fields.values()) > self.keep:
            what = " + ".join(fields)
            raise InputError(
                f"{self.name}: {what} = {sum(fields.values())} entries are always kept, more than "
                f"keep={self.keep}: raise keep or lower {what}"
            )

    def cache_count(self, layer: int, entries: int, visual: int) -> int:
        """`keep` of all entries, or of the visual ones and all of the text."""
        if self.scope == "all":
            return self.keep_count(entries)
        return entries - visual + self.keep_count(visual)

    def in_cache(self, layers: int) -> CachePolicy | None:
        """Rank by `score`; nothing at all if everything is kept."""
        return None if self.keeps_all else Ranked(self)

    def score(self, entries: Entries, k: int, fixed: Tensor) -> Tensor:
        """(G, n) in fp32, larger is kept.

        Args:
            entries: of one prompt in one layer.
            k: how many are kept besides the fixed ones.
            fixed: (n,) bool, entries that stay whatever their score.
        """
        raise NotImplementedError

    def protected(self) -> tuple[int, int]:
        """How many of a prompt's first and of its last entries always stay."""
        return 0, 0


class Ranked(CachePolicy):
    """Keeps the entries that a CacheReducer scores highest; ties go to the lower place."""

    def __init__(self, reducer: CacheReducer) -> None:
        self.reducer = reducer
        self.reads_queries = reducer.reads_queries

    def count(self, layer: int, entries: int, visual: int) -> int:
        """The reducer's budget."""
        return self.reducer.cache_count(layer, entries, visual)

    def keep(self, entries: Entries) -> Tensor:
        """What always stays, then the best of the others."""
        n = len(entries)
        k = self.count(entries.layer, n, int(entries.visual.sum()))
        fixed = ~entries.visual
        if self.reducer.scope == "all":
            first, last = self.reducer.protected()
            last = min(last, k)
            fixed = torch.zeros_like(fixed)
            fixed[n - last :] = True
            fixed[: min(first, k - last)] = True
        score = self.reducer.score(entries, k - int(fixed.sum()), fixed)
        score = score.clamp(max=torch.finfo(score.dtype).max)  # fixed ones first
        return highest(score.masked_fill(fixed, torch.inf), k)


def highest(score: Tensor, k: int) -> Tensor:
    """(G, k) places of the k largest of (G, n) scores, ascending; ties go to the lower place."""
    return score.sort(dim=-1, descending=True, stable=True).indices[:, :k].sort(dim=-1).values


def votes(entries: Entries, window: int, kernel: int, how: str = "avg") -> Tensor:
    """(H, n - window) mean attention that the last `window` entries pay to older ones, smoothed."""
    n = len(entries)
    voters = torch.arange(n - window, n, device=entries.keys.device)
    return pool(entries.rows(voters)[..., : n - window].mean(1), kernel, how)


def pool(score: Tensor, kernel: int, how: str = "avg") -> Tensor:
    """(C, n) smoothed along n by an odd kernel; zeros beyond the ends count in the average."""
    if score.shape[-1] == 0 or kernel == 1:
        return score
    by = avg_pool1d if how == "avg" else max_pool1d
    return by(score, kernel, stride=1, padding=kernel // 2)


def check_kernel(name: str, kernel: int) -> None:
    """InputError unless the kernel of `pool` is a positive odd int."""
    if kernel < 1 or kernel % 2 == 0:
        raise InputError(f"{name}: kernel must be a positive odd int, got {kernel!r}")
