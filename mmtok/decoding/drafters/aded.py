"""ADED (arXiv 2407.12021): a tree search over trigram statistics that follow the text.

The authors' code is liuxukun2000/Adaptix, the constants are theirs. A table holds, per pair of
tokens, what followed it and how likely that is: from a corpus, the `successors` likeliest, and from
the row itself, whose last trigrams gain `gain` at every step. Where ours differs: the reward of a
path is the sum of its transitions' weights, where theirs looks most of them up under the wrong
token and finds none; the tree's order depends on weights and ids, not on a hash, and a fresh node's
likeliest child is looked at first; siblings are judged by one draw of the target, where theirs
draws per path and keeps the best, which is biased; what a row adds stays its own.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from mmtok.decoding.base import Drafter, check_nodes
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree, Kind
from mmtok.decoding.trie import merged
from mmtok.errors import InputError

Pair = tuple[int, int]
Successors = Callable[[Pair], list[tuple[int, float]]]
_EXPLORE, _SCALE = 32.0, 8.0
_OWN_STREAM = 0x9E3779B97F4A7C15


@dataclass
class Place:
    """A node of the search: the last two tokens, and what is known about them.

    Attributes:
        weight: of the transition that leads here.
        below: its children; None until it is expanded.
    """

    pair: Pair
    weight: float
    visits: int = 0
    reward: float = 0.0
    below: list[Place] | None = None

    def score(self, visits: int) -> float:
        """How much it deserves the next visit, `visits` being its parent's."""
        if not self.visits:
            return math.inf
        explore = _EXPLORE + math.log((visits + _SCALE + 1) / _SCALE)
        chance = explore * self.weight * math.sqrt(visits) / (1 + self.visits)
        return self.reward / self.visits + chance

    def favourite(self) -> Place:
        """The child to visit next; the heaviest of equals."""
        return max(self.below or (), key=lambda child: child.score(self.visits))

    def paths(self) -> Iterator[tuple[int, list[int]]]:
        """Visits and tokens of every node below, in depth-first order."""
        for child in self.below or ():
            yield child.visits, [child.pair[1]]
            for visits, path in child.paths():
                yield visits, [child.pair[1], *path]


def search(
    pair: Pair, successors: Successors, iterations: int, depth: int, uniform: Callable[[], float]
) -> Place:
    """Monte Carlo tree search for likely continuations.

    Args:
        pair: the last two tokens.
        successors: of a pair, with weights, the heaviest first.
        iterations: walks from the root.
        depth: tokens of a walk.
        uniform: numbers in [0, 1) for the way on from a fresh node.
    """
    root = Place(pair, 0.0)
    for _ in range(iterations):
        walk = [root]
        while walk[-1].below and len(walk) <= depth:
            walk.append(walk[-1].favourite())
        last = walk[-1]
        if last.below is None and len(walk) <= depth:
            last.below = [Place((last.pair[1], t), w) for t, w in successors(last.pair)]
            walk += last.below[:1]
        reward = 1 + sum(place.weight for place in walk)
        reward += rollout(walk[-1].pair, successors, depth - len(walk) + 1, uniform)
        for place in walk:
            place.visits += 1
            place.reward += reward
    return root


def rollout(pair: Pair, successors: Successors, steps: int, uniform: Callable[[], float]) -> float:
    """Weight collected on a random way of up to `steps` tokens."""
    found = 0.0
    for _ in range(steps):
        options = successors(pair)
        if not options:
            break
        heaped = list(accumulate(weight for _, weight in options))
        at = min(bisect(heaped, uniform() * heaped[-1]), len(options) - 1)
        pair = (pair[1], options[at][0])
        found += options[at][1]
    return found


@dataclass
class _Row:
    """What one row has added to the table."""

    table: dict[Pair, dict[int, float]] = field(default_factory=dict)
    random: random.Random = field(default_factory=random.Random)


@dataclass(kw_only=True)
class ADED(Drafter):
    """Search likely continuations of the last two tokens.

    Attributes:
        corpus: texts as token ids; without any, the row alone is learnt from.
        iterations: walks of the search.
        depth: tokens of a walk; a path is then continued by its likeliest successor.
        paths: the most visited ones that are proposed.
        nodes: draft nodes.
        successors: kept per pair of the corpus.
        recent: last tokens of the row whose trigrams gain weight, at every step.
        gain: how much they gain.
        most: the weight they reach at most.
        skip: token ids the row is not learnt from, such as image placeholders.
    """

    corpus: Sequence[Sequence[int]] = ()
    iterations: int = 150
    depth: int = 3
    paths: int = 24
    nodes: int = 64
    successors: int = 12
    recent: int = 16
    gain: float = 0.04
    most: float = 3.0
    skip: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = (self.iterations, self.depth, self.paths, self.nodes, self.successors)
        if min(counts) < 1 or self.recent < 3 or not 0 < self.gain <= self.most:
            raise InputError(
                "aded: iterations, depth, paths, nodes and successors start at 1, recent at 3, "
                f"and 0 < gain <= most, got {counts}, {self.recent}, {self.gain!r}, {self.most!r}"
            )
        check_nodes("aded", self.nodes)
        self._known = _table(self.corpus, self.successors)
        self._rows: list[_Row] = []

    @property
    def kind(self) -> Kind:
        """Chosen: the search's random numbers are its own."""
        return "det"

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Forget what rows added."""
        self._rows = [_Row(random=random.Random(seed ^ _OWN_STREAM)) for seed in seeds]

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """One tree per active row."""
        return [
            self._tree(tokens, row) if on and len(tokens) > 1 else DraftTree.root(tokens[-1])
            for tokens, row, on in zip(ids, self._rows, active, strict=True)
        ]

    def _tree(self, ids: list[int], row: _Row) -> DraftTree:
        self._learn(ids[-self.recent :], row.table)
        held: dict[Pair, list[tuple[int, float]]] = {}

        def successors(pair: Pair) -> list[tuple[int, float]]:
            if pair not in held:
                found = row.table.get(pair) or self._known.get(pair, {})
                held[pair] = sorted(found.items(), key=lambda item: (-item[1], item[0]))
            return held[pair]

        root = search(
            (ids[-2], ids[-1]), successors, self.iterations, self.depth, row.random.random
        )
        found = sorted(root.paths(), key=lambda item: -item[0])[: self.paths]
        paths = [path for _, path in found]
        for path in paths:
            path += [t for t, _ in successors((([ids[-1], *path])[-2], path[-1]))[:1]]
        return merged(DraftTree.root(ids[-1]), paths, self.nodes)

    def _learn(self, ids: list[int], table: dict[Pair, dict[int, float]]) -> None:
        for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
            if self.skip and {a, b, c}.intersection(self.skip):
                continue
            found = table.setdefault((a, b), dict(self._known.get((a, b), {})))
            found[c] = min(found.get(c, 0.0) + self.gain, self.most)


def _table(corpus: Sequence[Sequence[int]], successors: int) -> dict[Pair, dict[int, float]]:
    """Per pair of tokens the likeliest successors and how often they follow."""
    counts: dict[Pair, dict[int, int]] = {}
    for text in corpus:
        for a, b, c in zip(text, text[1:], text[2:], strict=False):
            found = counts.setdefault((a, b), {})
            found[c] = found.get(c, 0) + 1
    table = {}
    for pair, found in counts.items():
        total = sum(found.values())
        best = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:successors]
        table[pair] = {token: count / total for token, count in best}
    return table
