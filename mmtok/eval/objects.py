"""COCO objects mentioned in a sentence, by a table of synonyms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from mmtok.eval.text import singular

_COLOURS = frozenset(
    (
        *("red", "orange", "yellow", "green", "blue", "purple", "pink"),
        *("white", "black", "brown", "grey", "gray", "gold", "silver"),
    )
)
_FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "is", "are", "was", "were", "and", "or", "with", "in", "on", "at"),
        *("of", "to", "from", "by", "for", "as", "it", "its", "that", "which", "next", "near"),
        *("beside", "behind", "under", "over", "has", "have", "sit", "lie", "hang"),
        *("sitting", "lying", "hanging"),
    )
)
_YOUNG = frozenset(("baby", "adult", "young", "mother", "father"))
_ANIMALS = frozenset(
    ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
)
_LONGEST = 3
_WORD = re.compile(r"[a-z0-9']+|[.,;:!?]")
_POSSESSIVE = re.compile(r"(?<=[a-z0-9])'s?(?![a-z0-9'])")


@dataclass(frozen=True)
class Synonyms:
    """Which phrases name which class.

    Attributes:
        classes: the 80 classes.
        phrases: words, singular -> class, or None for a phrase that only looks like one.
    """

    classes: tuple[str, ...]
    phrases: Mapping[tuple[str, ...], str | None]

    def mentions(self, text: str) -> list[str]:
        """The class of every object mentioned, in order and with repetition.

        The longest phrase wins, so "hot dog" is no dog and "toilet seat" no chair; "orange" before
        a noun is a colour; neither a "baby elephant" nor "its mother" is a person.
        """
        words = [singular(word) for word in _WORD.findall(_POSSESSIVE.sub("", _plain(text)))]
        found = []
        place = 0
        while place < len(words):
            length = self._longest(words, place)
            if length == 0 or self._misread(words, place, length):
                place += max(length, 1)
                continue
            name = self.phrases[tuple(words[place : place + length])]
            if name is not None:
                found.append(name)
            place += length
        return found

    def _longest(self, words: list[str], place: int) -> int:
        lengths = range(min(_LONGEST, len(words) - place), 0, -1)
        return next((n for n in lengths if tuple(words[place : place + n]) in self.phrases), 0)

    def _misread(self, words: list[str], place: int, length: int) -> bool:
        if length != 1:
            return False
        after = words[place + 1 : place + 3]
        if words[place] == "orange" and after:
            noun = after[0].isalpha() and after[0] not in _FUNCTION_WORDS
            return noun or (after[0] in ("and", "or") and after[1:2] != [] and after[1] in _COLOURS)
        following = self.phrases.get(tuple(after[:1]))
        its = place > 0 and words[place - 1] == "its"
        return words[place] in _YOUNG and (its or following in _ANIMALS)


def _plain(text: str) -> str:
    return text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


@cache
def coco_synonyms() -> Synonyms:
    """The table that ships with mmtok."""
    path = files("mmtok.eval").joinpath("methods", "data", "chair", "objects.json")
    table = json.loads(path.read_text(encoding="utf-8"))
    phrases: dict[tuple[str, ...], str | None] = {}
    for phrase in table["not_objects"]:
        phrases[_key(phrase)] = None
    for name, synonyms in table["objects"].items():
        for phrase in (name, *synonyms):
            phrases[_key(phrase)] = name
    return Synonyms(tuple(table["objects"]), phrases)


def _key(phrase: str) -> tuple[str, ...]:
    return tuple(singular(word) for word in re.findall(r"[a-z0-9']+", phrase.lower()))
