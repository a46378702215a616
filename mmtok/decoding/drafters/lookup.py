"""Prompt lookup: continue as the text did after its last tokens came up before.

From A. Saxena's prompt-lookup-decoding and transformers' candidate generator. Where several places
match we take the most recent one, theirs the first (`first_match=True`); image placeholders can be
left out (`skip`). The engine cuts the draft at the end of sequence and at the maximum length.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmtok.decoding.base import Drafter
from mmtok.decoding.tree import DraftTree, Kind
from mmtok.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Lookup(Drafter):
    """Propose a chain copied from earlier in the row.

    Attributes:
        tokens: longest draft.
        ngram: longest run of last tokens that is looked up; shorter ones follow.
        first_match: take the first place that matches instead of the last.
        skip: token ids that are never copied, such as image placeholders; a draft ends before one.
    """

    tokens: int = 10
    ngram: int = 2
    first_match: bool = False
    skip: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.ngram < 1:
            raise InputError(
                f"lookup: tokens and ngram start at 1, got {self.tokens}, {self.ngram}"
            )

    @property
    def kind(self) -> Kind:
        """Chosen, not drawn."""
        return "det"

    def propose(self, ids: list[list[int]], active: list[bool]) -> list[DraftTree]:
        """A chain per active row, maybe empty."""
        return [
            DraftTree.line([row[-1], *(self.copied(row) if on else [])])
            for row, on in zip(ids, active, strict=True)
        ]

    def copied(self, ids: list[int]) -> list[int]:
        """What followed an earlier occurrence of the last tokens."""
        for size in range(min(self.ngram, len(ids) - 1), 0, -1):
            last = ids[-size:]
            places = range(len(ids) - size)
            for at in places if self.first_match else reversed(places):
                if ids[at : at + size] == last and ids[at + size] not in self.skip:
                    found = ids[at + size : at + size + self.tokens]
                    stops = (i for i, token in enumerate(found) if token in self.skip)
                    return found[: next(stops, len(found))]
        return []
