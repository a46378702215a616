"""Prompt lookup: continue as the text did after its last tokens came up before.

From A. Saxena's prompt-lookup-decoding and transformers' candidate generator. Theirs takes the
first place where two tokens match, or one, and always drafts ten; ours takes the place with the
longest match, the most recent of several. On a CPU the first draft token makes a forward dearer by
half and the next six by as much again, which a match of one token is rarely worth: so one token is
no match (`shortest`), and drafts start with `first` tokens and double while they are accepted.
`lookup(tokens=10, first=10, ngram=2, shortest=1, first_match=True)` drafts as theirs does. Image
placeholders can be left out (`skip`). The engine cuts the draft at the end of sequence and at the
maximum length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmtok.decoding.base import Drafter, StepResult, check_nodes
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree, Kind
from mmtok.errors import InputError


@dataclass(kw_only=True)
class Lookup(Drafter):
    """Propose a chain copied from earlier in the row.

    Attributes:
        tokens: longest draft.
        first: length of a row's first draft, and the least later on. One that is accepted whole
            doubles the next; otherwise the next is as long as what was accepted.
        ngram: longest run of last tokens that is looked up.
        shortest: shortest run that counts, unless `ngram` is less.
        first_match: take the first of the places that match best instead of the last.
        skip: token ids that are never copied, such as image placeholders; a draft ends before one.
    """

    tokens: int = 24
    first: int = 7
    ngram: int = 8
    shortest: int = 2
    first_match: bool = False
    skip: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        given = (self.tokens, self.first, self.ngram, self.shortest)
        if min(given) < 1:
            raise InputError(f"lookup: tokens, first, ngram and shortest start at 1, got {given}")
        check_nodes("lookup", self.tokens)
        self.first = min(self.first, self.tokens)
        self.shortest = min(self.shortest, self.ngram)

    @property
    def kind(self) -> Kind:
        """Chosen, not drawn."""
        return "det"

    def start(self, target: Target, ids: list[list[int]], seeds: Sequence[int]) -> None:
        """Forget how well the last batch went."""
        self._length = [self.first for _ in ids]

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """A chain per active row, maybe empty."""
        rows = zip(ids, active, self._length, strict=True)
        self._drafts = [self.copied(row)[:length] if on else [] for row, on, length in rows]
        return [
            DraftTree.line([row[-1], *draft]) for row, draft in zip(ids, self._drafts, strict=True)
        ]

    def observe(self, results: list[StepResult | None]) -> None:
        """Settle how long the next drafts may be."""
        for r, (draft, result) in enumerate(zip(self._drafts, results, strict=True)):
            if result is None or not draft:
                continue
            pairs = zip(draft, result.emitted, strict=False)
            hits = next((i for i, (a, b) in enumerate(pairs) if a != b), len(draft))
            grown = 2 * self._length[r] if hits == len(draft) else hits
            self._length[r] = max(self.first, min(grown, self.tokens))

    def copied(self, ids: list[int]) -> list[int]:
        """What followed an earlier occurrence of the last tokens, at most `tokens` of it."""
        best, place, last = self.shortest - 1, -1, len(ids) - 1
        for at in range(last - 1, -1, -1):
            if ids[at] != ids[last] or ids[at + 1] in self.skip:
                continue
            size = 1
            while size < min(self.ngram, at + 1) and ids[at - size] == ids[last - size]:
                size += 1
            if size > best or (self.first_match and size == best and place >= 0):
                best, place = size, at
            if best == self.ngram and not self.first_match:
                break
        if place < 0:
            return []
        found = ids[place + 1 : place + 1 + self.tokens]
        stops = (i for i, token in enumerate(found) if token in self.skip)
        return found[: next(stops, len(found))]
