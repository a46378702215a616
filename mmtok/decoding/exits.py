"""Early exits: the target's own first layers draft, reading the target's own KV cache.

A view shares the keys and values of committed tokens with the target, images and guidance
included, and writes what it drafts to layers of its own: the target's cache is never touched, and
nothing is read twice. Verification runs all layers again, where LayerSkip (arXiv 2404.16710) goes
on from the exit: what a step then costs is what DEL's formula counts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mmtok.decoding.layers import depth_of, entering, part
from mmtok.decoding.modeldraft import GrowingDrafter
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree, Kind


def view(target: Target, first: int, last: int) -> Target:
    """The target with some of its layers only; `lend` gives it a cache."""
    seen = copy.copy(target)
    seen.model, seen.forwards, seen.watched = part(target.model, first, last), 0, ()
    return seen


def lend(target: Target, views: Sequence[Target], last: int) -> None:
    """Let views up to layer `last` read what the target has committed, and share what they add."""
    stock = copy.copy(target.cache.stock)
    stock.layers = [copy.copy(layer) for layer in stock.layers[:last]]
    for one in views:
        one.cache = copy.copy(target.cache)
        one.cache.stock, one.cache.tail = stock, 0
        one.length, one.ahead = target.length, target.ahead


class ExitDrafter(GrowingDrafter):
    """Drafts chains at an exit layer; a subclass chooses among its exits.

    Exit l runs the first l layers, then the model's own norm and head.
    """

    temperature: float = 0.0

    @property
    def kind(self) -> Kind:
        """Drawn, or chosen at temperature 0."""
        return "chain" if self.temperature else "det"

    @property
    def forwards(self) -> int:
        """Calls of the shortened model in this batch."""
        return sum(seen.forwards for seen in self._views.values())

    def exits(self, depth: int) -> tuple[int, ...]:
        """The exits of a model with `depth` layers that may be used, ascending."""
        raise NotImplementedError

    def layer(self) -> int:
        """The exit of the next draft."""
        raise NotImplementedError

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Make a view of the target for every exit.

        Raises:
            InputError: the model has no layers to leave early, or not these exits.
        """
        self._lender = target
        exits = self.exits(depth_of(target.model))
        self._views = {layer: view(target, 0, layer) for layer in exits}
        self.seed(seeds)

    def first(self, ids: list[list[int]], active: list[bool]) -> list[Tensor]:
        """Run the last tokens up to the exit."""
        layer = self.layer()
        self._target = self._views[layer]
        lend(self._lender, [self._target], layer)
        logits = self._target.score([DraftTree.root(row[-1]) for row in ids])
        self._target.commit([[0] for _ in ids])
        return [self.row(z[0]) for z in logits]


class Nested:
    """A chain of tokens that runs up to any of a model's exits, token by token.

    A token that stopped early is taken through the deeper layers as soon as a later one needs
    its keys and values there.

    Args:
        source: a model behind a cache, which is read but not written.
        exits: layers after which to stop, ascending, the model's depth last.
    """

    def __init__(self, source: Target, exits: Sequence[int]) -> None:
        self._source, self._exits = source, exits
        self._parts = [view(source, a, b) for a, b in pairwise([0, *exits])]
        for one in self._parts[:-1]:
            one.watched = (depth_of(one.model),)

    @property
    def forwards(self) -> int:
        """Calls of parts of the model."""
        return sum(one.forwards for one in self._parts)

    def begin(self) -> None:
        """An empty chain behind what the source has committed."""
        lend(self._source, self._parts, self._exits[-1])
        self._tokens = torch.zeros(0, 0, dtype=torch.long)
        self._waiting: list[list[Tensor]] = [[] for _ in self._parts]

    def push(self, tokens: Tensor) -> None:
        """Append one token (B,) per row."""
        self._tokens = torch.cat([self._tokens.reshape(len(tokens), -1), tokens[:, None]], 1)

    def logits(self, at: int) -> Tensor:
        """(B, V) behind the last token at exit `at`, counted from 0, after the exits before it."""
        segment, (size, end) = self._parts[at], self._tokens.shape
        start = segment.cache.tail
        held = self._waiting[at]
        hidden = torch.cat(held, 1) if held else None
        held.clear()
        depth = torch.arange(start, end).expand(size, -1)
        sees = torch.ones(end, end, dtype=torch.bool).tril()[start:].expand(size, -1, -1)
        with entering(segment.model, hidden):
            logits = segment.extend(self._tokens[:, start:], depth, sees)
        if segment.watched:
            self._waiting[at + 1].append(segment.seen[segment.watched[0]])
        return logits[:, -1]
