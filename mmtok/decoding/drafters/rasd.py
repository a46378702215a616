"""RASD (arXiv 2503.03434): retrieved continuations in one tree with another drafter's.

What followed the last tokens earlier in the row (as `lookup` finds it) or in a corpus (as REST,
arXiv 2311.08252, does) is pruned to paths that begin as one of the drafter's own first tokens, and
merged with its tree along common beginnings. No code of the authors was read. Retrieval is ours:
the longest matching runs of tokens first, the row before the corpus, later places before earlier
ones. Both parts must be chosen, not drawn: a tree of both kinds has no rule that is right for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mmtok.decoding import drafter_registry
from mmtok.decoding.base import Drafter, StepResult, check_nodes
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree, Kind
from mmtok.decoding.trie import merged
from mmtok.errors import InputError

_END = -1  # between the texts of a corpus; no draft runs across
_LOOKS = 64  # latest places that are compared, so that a frequent pair costs no more than a rare


@dataclass
class Store:
    """Tokens, and where each pair of them ends."""

    tokens: list[int] = field(default_factory=list)
    ends: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        self.tokens.extend(tokens)
        for at in range(max(1, len(self.tokens) - len(tokens)), len(self.tokens)):
            pair = (self.tokens[at - 1], self.tokens[at])
            if _END not in pair:
                self.ends.setdefault(pair, []).append(at + 1)

    def matches(self, last: list[int], longest: int) -> Iterator[tuple[int, int]]:
        """Length of the run of `last` tokens, and where it ends; later places first."""
        for end in reversed(self.ends.get((last[-2], last[-1]), [])[-_LOOKS:]):
            size = 2
            while size < min(longest, len(last), end) and (
                self.tokens[end - size - 1] == last[-size - 1]
            ):
                size += 1
            yield size, end

    def behind(self, end: int, count: int) -> list[int]:
        """Up to `count` tokens from a place on."""
        found = self.tokens[end : end + count]
        return found[: found.index(_END)] if _END in found else found


@dataclass(kw_only=True)
class RASD(Drafter):
    """Merge what is retrieved with the trees of `base`.

    Attributes:
        base: a drafter whose trees are chosen, or its spec.
        corpus: texts as token ids.
        tokens: longest path that is retrieved.
        paths: how many are.
        longest: tokens in a row that are compared at most; two must match at least.
        prune: keep only paths that begin as the base's tree does, where it has one.
        nodes: draft nodes of the merged tree; those of the base always stay.
        skip: token ids that are not retrieved, such as image placeholders; a path ends before one.
    """

    base: Drafter | str = "recycling"
    corpus: Sequence[Sequence[int]] = ()
    tokens: int = 10
    paths: int = 8
    longest: int = 16
    prune: bool = True
    nodes: int = 100
    skip: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        given = self.base
        self._base = drafter_registry.build(given) if isinstance(given, str) else given
        if self._base.kind != "det":
            raise InputError(
                f"rasd: {type(self._base).__name__} draws its trees (kind {self._base.kind!r}), "
                "what is retrieved is chosen; use a base of kind 'det', such as temperature=0"
            )
        if min(self.tokens, self.paths, self.nodes) < 1 or self.longest < 2:
            raise InputError(
                "rasd: tokens, paths and nodes start at 1, longest at 2, got "
                f"{self.tokens}, {self.paths}, {self.nodes} and {self.longest}"
            )
        check_nodes("rasd", self.nodes)
        self._shared = Store()
        for text in self.corpus:
            self._shared.extend([*self._kept(text), _END])
        self._own: list[Store] = []

    @property
    def kind(self) -> Kind:
        """Chosen, not drawn."""
        return "det"

    @property
    def forwards(self) -> int:
        """Calls of the base's model in this batch."""
        return getattr(self._base, "forwards", 0)

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Start the base, forget the rows."""
        self._base.start(target, ids, seeds)
        self._own = [Store() for _ in ids]

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """The base's trees with what was retrieved."""
        self._base.room = self.room
        trees = self._base.propose(ids, active)
        return [
            self._fused(tree, self._retrieved(row, own)) if on else tree
            for tree, row, own, on in zip(trees, ids, self._own, active, strict=True)
        ]

    def _kept(self, tokens: Sequence[int]) -> list[int]:
        return [_END if token in self.skip else token for token in tokens]

    def _retrieved(self, row: list[int], own: Store) -> list[list[int]]:
        own.extend(self._kept(row[len(own.tokens) :]))
        if len(row) < 2:
            return []
        found = [
            (-size, rank, store.behind(end, self.tokens))
            for rank, store in enumerate((own, self._shared))
            for size, end in store.matches(row, self.longest)
        ]
        found.sort(key=lambda item: item[:2])  # stable, so later places stay ahead
        return [path for _, _, path in found if path]

    def _fused(self, tree: DraftTree, paths: list[list[int]]) -> DraftTree:
        begins = {int(tree.tokens[child]) for child in tree.children(0)}
        if self.prune and begins:
            paths = [path for path in paths if path[0] in begins]
        return merged(tree, paths[: self.paths], self.nodes)

    def observe(self, results: list[StepResult | None]) -> None:
        """Let the base learn."""
        self._base.observe(results)
