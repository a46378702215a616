"""A careful reader of multiple-choice answers: a letter, or the words of one option, or nothing.

A letter counts where it stands for an option: not the article "A", not the first letter of
"Based on", not one that the answer rejects ("not A", "B is wrong").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmtok.eval.text import clean

_FREE = r"(?<![A-Za-z0-9'])"
_END = r"(?![A-Za-z0-9'])"
_CUE = (
    r"(?:answer|ans|solution|correct|best|right|choose|chose|select|selected|pick"
    r"|go with|going with|opt for|conclude|答案|选择?|選)"
)
_NAMED = r"(?:option|choice|candidate|letter|alternative)"
_LINK = (
    r"(?:\s|[:=\-\"']|\b(?:is|are|be|would|will|should|must|option|choice|letter|the|one)\b"
    r"|[是为為])*"
)
_WRONG = r"(?:wrong|incorrect|false|not|out|eliminated|impossible|unlikely|ruled out|excluded)"
_REFUSED = re.compile(
    r"\b(none|all|both|neither|any|some) of (the|these|them)\b|n't (know|tell|determine)"
    r"|\bnot (sure|certain|enough|clear|possible)|(cannot|can not|can't|unable to) \w*\s*(be )?"
    r"(tell|determine|determined|answer|say|know|see|identify)|\bno (answer|idea|option)\b"
    r"|\b(unclear|unknown|sorry)\b",
    re.IGNORECASE,
)
_NOT_OPTIONS = re.compile(
    r"\b(vitamin|hepatitis|plan|grade|type|size|team|row|section|gate|figure|group) [A-Z]\b",
    re.IGNORECASE,
)
_SMALL = frozenset(
    (
        *("a", "an", "the", "of", "in", "on", "at", "to", "and", "or", "is", "are", "was", "were"),
        *(
            "it",
            "he",
            "she",
            "they",
            "his",
            "her",
            "its",
            "with",
            "for",
            "by",
            "from",
            "because",
            "as",
        ),
    )
)


def read_choice(text: str, options: Sequence[str] = ()) -> str | None:
    """The capital letter of the option that an answer names, else None.

    Args:
        text: the answer.
        options: texts of the options, with or without their letters; four unnamed ones if empty.
    """
    said = clean(text)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options) or 4]
    texts = [_words(re.sub(r"^\s*\(?[A-Z][.):]\s+", "", option)) for option in options]
    whole = re.fullmatch(r"\W*([A-Za-z])\W*", said)
    if whole:
        letter = whole[1].upper()
        return letter if letter in letters else None
    exact = [letters[i] for i, words in enumerate(texts) if words and words == _words(said)]
    if len(exact) == 1:
        return exact[0]
    named = _capitalised(said, letters)
    if re.search(rf"{_FREE}[{letters}]+{_END}", named):
        return _by_letter(named, letters, texts)
    return _by_text(said, texts)


def _words(text: str) -> list[str]:
    """The words that carry meaning, singular and in lower case."""
    found = re.findall(r"[\w'-]+", text.lower())
    kept = [w for w in found if w not in _SMALL] or found
    return [w[:-1] if len(w) > 3 and re.search(r"[^su]s$", w) else w for w in kept]


def _by_letter(said: str, letters: str, texts: list[list[str]]) -> str | None:
    """The letter that is named as the answer, leads it, or is the only one left."""
    plain = _without_articles(_NOT_OPTIONS.sub(" ", said), letters)
    open_to = _without_rejected(plain, letters)
    chosen = _outright(open_to, letters)
    lead = _lead(open_to, letters, texts)
    if lead is not None and chosen and not lead & chosen and not open_to.startswith("A:"):
        return None
    if not chosen and _all_listed(open_to, letters):
        return None
    chosen = chosen or (set(re.findall(_one(letters), open_to)) if lead is None else lead)
    if len(chosen) > 1:
        last = re.findall(rf"\b(?:so|thus|therefore|hence)\b,?\s*{_one(letters)}", open_to)
        chosen = set(last[-1:])
    if len(chosen) == 1:
        return chosen.pop()
    unresolved = re.search(rf"{_FREE}[{letters}]+{_END}", open_to)
    return None if unresolved else _by_text(said, texts)


def _one(letters: str) -> str:
    return rf"{_FREE}([{letters}]){_END}"


def _lead(said: str, letters: str, texts: list[list[str]]) -> set[str] | None:
    """The letter an answer begins with; empty where what follows belongs to another option."""
    found = re.match(rf"\W*([{letters}])\s*(?:[).:\]]|,(?!\s*[{letters}]{_END})|$|\n| -)", said)
    if not found:
        return None
    rest = said[found.end() :]
    others = [letters[i] for i, words in enumerate(texts) if words and words == _words(rest)]
    alone = re.fullmatch(rf"(?:\W*[{letters}])+\W*", rest)
    others += re.findall(f"[{letters}]", rest) if alone else []
    return {found[1]} if all(other == found[1] for other in others) else set()


def _all_listed(said: str, letters: str) -> bool:
    """Whether an answer only repeats the options."""
    listed = set(re.findall(rf"{_FREE}([{letters}])[.):]", said))
    return len(listed) > 2 and listed == set(letters)


def _capitalised(said: str, letters: str) -> str:
    """Lower-case letters that stand for options, such as "(c)" and "answer: c", as capitals."""
    low = letters.lower()
    for pattern in (
        rf"[(\[]\s*([{low}])\s*[)\]]",
        rf"^([{low}])[).:]",
        rf"{_CUE}{_LINK}([{low}])(?=\W*$|[).,;])",
        rf"\b{_NAMED}\s*:?\s*([{low}])(?=\W*$|[).,;])",
    ):
        said = re.sub(
            pattern,
            lambda hit: (
                hit[0][: hit.start(1) - hit.start()]
                + hit[1].upper()
                + hit[0][hit.end(1) - hit.start() :]
            ),
            said,
            flags=re.IGNORECASE,
        )
    return said


def _without_articles(said: str, letters: str) -> str:
    """The answer without the word "A" before a noun and the word "I"."""
    said = re.sub(
        r"(?<![A-Za-z0-9'(])(?<!option )(?<!answer )A(?= (?!(?:and|or|nor|is|was|because|since|as"
        r"|seems|would|looks|are|appears|but|not)\b)[a-z0-9])",
        "a",
        said,
    )
    return re.sub(r"\bI(?='| (?!is\b|and\b|or\b)[a-z])", "i", said) if "I" in letters else said


def _without_rejected(said: str, letters: str) -> str:
    """The answer without letters it turns down."""
    one = rf"{_FREE}[{letters}]{_END}"
    some = (
        rf"(?:(?i:both|either|neither) )?(?:{_NAMED}s? )?{one}(?:(?:,? (?:and|or|nor)|,|/) ?{one})*"
    )
    verb = r"(?:is|are|was|were|can be|seems?|looks?)"
    for pattern in (
        rf"\b(?i:rather than|instead of|reject|eliminate|exclude|rul(?:e|ing) out|neither) {some}",
        rf"{some} (?:both |all )?{verb} (?:clearly |all |both |definitely )?(?:{_WRONG})\b[^.,;]*",
        rf"{some} (?:can't|cannot|isn't|aren't|doesn't|does not|do not|don't) [^.,;]*",
        rf"{one}\? (?i:no)\b",
        rf"(?:n't|\bcannot|\b(?i:not))(?: be)? {some}",
        rf"{some} (?:both |all )?(?:appear|occur|happen|come later|are shown|are seen)\b",
    ):
        said = re.sub(pattern, " ", said)
    return said


def _outright(said: str, letters: str) -> set[str]:
    """Letters that a phrase calls the answer; the last phrase of the strongest sort."""
    one = rf"([{letters}]){_END}"
    several = rf"(?:\s*(?:or|and|/|,|&)\s*{one})?"
    for pattern in (
        rf"(?i:{_CUE}){_LINK}\W{{0,3}}{one}{several}",
        rf"{_FREE}{one}{several} (?:is|are|would be|seems|must be|looks) (?:the |most |to be )*"
        r"(?:right|correct|best|answer|true|likely|accurate)",
        rf"(?i:{_NAMED})\s*:?\W{{0,3}}{one}{several}",
    ):
        found = [set(filter(None, hit.groups())) for hit in re.finditer(pattern, said)]
        if found:
            return found[-1]
    return set()


def _by_text(said: str, texts: list[list[str]]) -> str | None:
    """The one option whose words are all in the answer."""
    if _REFUSED.search(said):
        return None
    plain = re.sub(r"\b(?:not|rather than|instead of) (?:the |a |an )?[\w-]+", " ", said.lower())
    words = set(_words(plain))
    inside = [i for i, option in enumerate(texts) if option and set(option) <= words]
    if not inside and 0 < len(words) <= 4:
        inside = [i for i, option in enumerate(texts) if words <= set(option)]
    longest = [i for i in inside if not any(set(texts[i]) < set(texts[j]) for j in inside)]
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[longest[0]] if len(longest) == 1 else None
