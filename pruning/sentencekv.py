"""SentenceKV: store what matters, read the sentences that fit what is being said
(arXiv 2504.00970).

Authors' repository: zzbright1998/SentenceKV. After the prefill the last `window` tokens vote which
`keep` entries are stored. Stored entries belong to sentences; the mean of a sentence's keys stands
for it. In each decode step the mean query of the answer's current sentence ranks the sentences, and
entries are read in that order until `read` is full, besides the first `start` and the last `recent`
of the cache. A finished sentence of the answer joins the others.

A sentence of text ends at a token of `punctuation`; token ids are the tokenizer's, so they must be
given (`punctuation_ids`), else each stretch of text is one sentence. An image, a frame or a tile is
a sentence of its own: that part is ours.

Deviations: the entries that are read are gathered, where the authors' code hides the others behind
a mask; the entry at cache index `start` can be read, which a strict bound there forbids
(`compat="repo"`), and no list of a sentence's tokens is cut off; the answer's current sentence is
read in full; heads that share a KV head choose together, by mean votes and mean queries. The
defaults of `window`, `kernel` and `threshold` are ours.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmtok.errors import InputError
from mmtok.pruning.cache import (
    CachePolicy,
    CacheReducer,
    Entries,
    Prompt,
    Ranked,
    Stored,
    check_kernel,
    votes,
)


@dataclass(frozen=True, kw_only=True)
class SentenceKV(CacheReducer):
    """Store the KV entries the prompt's end attends to, and read them sentence by sentence.

    Attributes:
        keep: entries stored per layer and KV head, a number or a share of the prompt.
        read: of those, how many a decode step reads: a number or a share of the stored ones.
        start: the first entries of the cache, always read.
        recent: the last entries of the cache, always read.
        window: tokens that vote on what is stored and always are.
        kernel: odd width of the votes' smoothing.
        pooling: how votes are smoothed.
        threshold: while the answer's current sentence has no more tokens, everything is read.
        punctuation: token ids that end a sentence.
        compat: "repo" never reads the entry at index `start`, as the authors' code.
    """

    reads_queries: ClassVar[bool] = True

    keep: int | float = 640
    read: int | float = 128
    start: int = 32
    recent: int = 32
    window: int = 32
    kernel: int = 5
    pooling: Literal["avg", "max"] = "avg"
    threshold: int = 8
    punctuation: Sequence[int] = ()
    compat: Literal["paper", "repo"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("window", 1)
        self.check_protected(window=self.window)
        for name in ("start", "recent", "threshold"):
            self.check_number(name)
        check_kernel(self.name, self.kernel)
        share = isinstance(self.read, float) and 0 < self.read <= 1
        if not share and (isinstance(self.read, float) or self.read < 1):
            raise InputError(
                "sentencekv: read must be a number of entries (an int >= 1) or a share of the "
                f"stored ones (a float in (0, 1]), got {self.read!r}"
            )

    def protected(self) -> tuple[int, int]:
        """The window."""
        return 0, self.window

    def score(self, entries: Entries, k: int, fixed: Tensor) -> Tensor:
        """The window's smoothed votes; infinite in the window."""
        window = min(self.window, len(entries))
        score = entries.by_head(votes(entries, window, self.kernel, self.pooling)).mean(1)
        return pad(score, (0, window), value=torch.inf)

    def read_count(self, stored: int) -> int:
        """How many of the stored entries that compete a decode step reads."""
        many = int(self.read * stored + 0.5) if isinstance(self.read, float) else self.read
        if self.scope == "all":
            many -= self.start + self.recent
        return max(many, 0)

    def competes(self, place: Tensor, length: Tensor | int) -> Tensor:
        """Whether entries at cache index `place` of `length` are read only if chosen."""
        first = self.start + (self.compat == "repo")
        return (place >= first) & (place < length - self.recent)

    def in_cache(self, layers: int) -> CachePolicy | None:
        """Store by votes, read by sentences; nothing at all if everything is kept."""
        return None if self.keeps_all else _Sentences(self)


@dataclass
class _Layer:
    """What one layer remembers: whose sentence each entry is, sentence means, summed queries."""

    sentence: Tensor
    asked: Tensor
    means: Tensor | None = None


class _Sentences(Ranked):
    selects = True

    def __init__(self, reducer: SentenceKV) -> None:
        super().__init__(reducer)
        self.rule = reducer

    def begin(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.marks = torch.tensor(list(self.rule.punctuation), device=prompt.ids.device)
        self.sentence = sentence_numbers(prompt.ids, prompt.cell[:2], self.marks)
        self.current = self.sentence.max().expand(len(prompt.ids)) + 1
        self.length = torch.zeros_like(self.current)
        self.ended = torch.zeros_like(self.current, dtype=torch.bool)
        self.layers: dict[int, _Layer] = {}

    def token(self, ids: Tensor | None) -> None:
        if bool(self.ended.any()):
            self.current = self.current + self.ended.long()
            for layer in self.layers.values():
                layer.asked[self.ended] = 0
                layer.means = None
        self.length = self.length.masked_fill(self.ended, 0) + 1
        self.ended = torch.zeros_like(self.ended)
        if ids is not None:
            self.ended = torch.isin(ids[:, -1], self.marks)

    def step(self, stored: Stored) -> Tensor | None:
        layer = self._remember(stored)
        if bool((self.length <= self.rule.threshold).all()):
            return None
        count = int(self.current.max()) + 1
        if layer.means is None:
            closed = stored.real[:, None] & (layer.sentence < self.current[:, None, None])
            layer.means = sentence_means(stored.keys, layer.sentence, closed, count)
        query = layer.asked / self.length[:, None, None]
        alike = (layer.means @ query[..., None]).squeeze(-1)
        self.flops += 2 * layer.means.numel()
        return self._choose(stored, layer, alike)

    def _remember(self, stored: Stored) -> _Layer:
        """The layer's notes, brought up to the token of this step."""
        groups, seen = stored.keys.shape[1], stored.keys.shape[2]
        query = stored.query.float().mean(2)
        if stored.layer not in self.layers:
            whole = self.sentence[:, None].expand(-1, groups, -1)
            self.layers[stored.layer] = _Layer(
                sentence=whole.gather(2, stored.slot), asked=torch.zeros_like(query)
            )
        layer = self.layers[stored.layer]
        new = seen - layer.sentence.shape[2]
        own = self.current[:, None, None].expand(-1, groups, new)
        layer.sentence = torch.cat([layer.sentence, own], dim=2)
        layer.asked += query
        return layer

    def _choose(self, stored: Stored, layer: _Layer, alike: Tensor) -> Tensor:
        rule, real = self.rule, stored.real[:, None].expand_as(layer.sentence)
        kept, seen = stored.slot.shape[2], real.shape[2]
        free = real
        if rule.scope == "all":
            place = real.long().cumsum(2) - 1
            free = real & rule.competes(place, place[..., -1:] + 1)
            always = (place < rule.start) | (place >= place[..., -1:] + 1 - rule.recent)
            rivals = real[:, 0, :kept].sum(1)
        else:
            visual = self.prompt.visual[:, None].expand(-1, stored.slot.shape[1], -1)
            visual = visual.gather(2, stored.slot) & real[..., :kept]
            always = pad(~visual, (0, seen - kept), value=True)
            rivals = visual[:, 0].sum(1)
        always = always | (layer.sentence == self.current[:, None, None])
        free = free & ~always
        needed = torch.tensor([rule.read_count(n) for n in rivals.tolist()], device=real.device)
        order = by_sentence(alike, layer.sentence, free)
        rank = torch.arange(seen, device=real.device).expand_as(order)
        first = torch.zeros_like(real).scatter(2, order, rank < needed[:, None, None])
        everything = (self.length <= rule.threshold)[:, None, None]
        return real & (always | first | everything)


def sentence_numbers(ids: Tensor, unit: Tensor, marks: Tensor) -> Tensor:
    """(B, S) int64 number of the sentence each token belongs to, ascending along the prompt.

    Args:
        ids: (B, S) token ids.
        unit: (2, B, S) image or clip, and frame or tile, of each visual token; -1 at text.
        marks: token ids that end a sentence of text.
    """
    ends = torch.isin(ids, marks) & (unit[0] < 0)
    begins = (unit[..., 1:] != unit[..., :-1]).any(0) | ends[:, :-1]
    return pad(begins.long().cumsum(1), (1, 0))


def sentence_means(keys: Tensor, sentence: Tensor, valid: Tensor, count: int) -> Tensor:
    """(B, G, count, h) mean key of each sentence in fp32, zero where it holds no valid entry.

    Args:
        keys: (B, G, T, h).
        sentence: (B, G, T) number of each entry's sentence, below count.
        valid: (B, 1 or G, T) bool.
        count: sentences.
    """
    bin_ = sentence.masked_fill(~valid, count)
    sums = keys.new_zeros(*keys.shape[:2], count + 1, keys.shape[3], dtype=torch.float32)
    sums.scatter_add_(2, bin_[..., None].expand_as(keys), keys.float())
    sizes = torch.zeros_like(sums[..., 0]).scatter_add_(2, bin_, torch.ones_like(bin_).float())
    return sums[:, :, :count] / sizes[:, :, :count, None].clamp_min(1)


def by_sentence(alike: Tensor, sentence: Tensor, free: Tensor) -> Tensor:
    """(..., T) places: free entries by their sentence's likeness, then by place; the others last.

    Args:
        alike: (..., N) likeness of each sentence to what is being said.
        sentence: (..., T) number of each entry's sentence.
        free: (..., T) bool, entries that compete.
    """
    score = alike.gather(-1, sentence).masked_fill(~free, -torch.inf)
    return score.sort(dim=-1, descending=True, stable=True).indices


def punctuation_ids(tokenizer: Any, marks: str = ".!?;\n") -> tuple[int, ...]:
    """Ids of a tokenizer's tokens that end in one of `marks` and hold nothing but punctuation.

    Args:
        tokenizer: a Hugging Face tokenizer.
        marks: characters that end a sentence.
    """
    found = []
    for token in tokenizer.get_vocab().values():
        text = tokenizer.decode([token])
        ending = text.rstrip(" ")[-1:]
        plain = all(c in string.punctuation or c.isspace() for c in text)
        if ending and ending in marks and plain:
            found.append(token)
    return tuple(sorted(found))
