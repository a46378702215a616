"""A careful reader of yes/no answers: rather "unreadable" than a guess.

It collects what the answer says outright ("yes", "the answer is no") and what it says about the
thing that was asked for ("there is no dog"), and gives up where the two, or their parts, disagree.
The question matters: in "A dog is present. No cat is visible." only one sentence is the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmtok.eval.text import IRREGULAR, clean, singular

_IDIOMS = re.compile(
    r"\b(no|without( a| any)?|there is no) (doubt|question|wonder|denying)( (about it|that))?"
    r"|\bnot (only|just|merely|simply)\b|\bnothing (but|other than)\b|\bnone other than\b"
    r"|\bno (fewer|less) than\b|\bno shortage of\b|\b(can't|cannot|can not) (miss|deny)\b"
    r"|\bnot one but\b|\bno worries\b|\bno matter\b"
)
_BOTH = re.compile(r"\b(yes|no) (and|or) (yes|no)\b|\byes ?/ ?no\b")
_UNSURE = re.compile(
    r"\b(unsure|uncertain|unclear|maybe|perhaps|possibly|might|unknown|undetermined|inconclusive"
    r"|not (\w+ )?(sure|certain|clear|possible|enough|confident)|no idea|no way to (tell|know)"
    r"|n't (know|tell|say)|not (know|tell|say)|depends"
    r"|(may|could) (be|have|contain|show|not)|(hard|difficult|impossible|tough) to|unable to"
    r"|insufficient|as an ai|language model)\b"
    r"|(can't|cannot|can not|couldn't|could not|won't|will not|unable to) (\w+ )?(tell|say|know"
    r"|answer|determine|help|assist|confirm|verify|be (determined|sure)|decide|provide|comply"
    r"|(see|view|access|open|process|analy[sz]e) (the |this |that |any |your |an )?"
    r"(image|picture|photo|video)s?\b)"
    r"|\bno (image|picture|photo|video)\b"
)
_HARD = {
    **dict.fromkeys(("yes", "yep", "yeah", "yup", "yea", "true"), "yes"),
    **dict.fromkeys(("no", "nope", "nah", "false"), "no"),
}
_HARD_YES = r"(?P<yes>yes|yep|yeah|yup|yea|true)(?![\w'-])"
_HARD_NO = (
    r"(?P<no>nope|nah|false|(?<=\ba )no(?= from| for|\W*$)|no(?=\W*$|\s*[,.!:;)\"'/]|\s+[-(]"
    r"|\s+(there|it|i|the|this|that|they|we|because|since|as|not|yes|no)\b))(?![\w'])"
)
_HARD_WORD = re.compile(rf"(?<![\w'-])(?:{_HARD_YES}|{_HARD_NO})")
_SOFT = (
    (
        re.compile(
            r"^((certainly|absolutely|definitely|surely|of course|probably|apparently|clearly|i"
            r"( am|'m)? (think|believe|guess|afraid|suppose|would say)|most likely|likely),? not"
            r"|(i )?(do not|don't) (think|believe) so|not (at all|really|that i)|none"
            r"|no way(?! to)|negative|never|incorrect|wrong|not (correct|right)"
            r"|(that|this|it)( is|'s)( not|n't) (correct|right))\b"
        ),
        "no",
    ),
    (
        re.compile(
            r"^(that's |that is |this is |it is |it's )?(certainly|absolutely|definitely"
            r"|surely|sure|of course|indeed|correct|right|exactly"
            r"|affirmative|positive|undoubtedly|for sure|i (think|believe|guess) so)(\W|$)"
        ),
        "yes",
    ),
)
_FOREIGN = (
    (re.compile(r"^(否|不|没有|沒有|无|無|いいえ|아니)|^(non|nein|нет|não|nej)\b"), "no"),
    (re.compile(r"^(是|有|对|對|はい|네|예)|^(oui|sí|si|ja|да|sim)\b"), "yes"),
)
_CORRECTION = re.compile(r"\b(wait|actually|correction|i mean|on second thought|rather)\b")
_SEEN = (
    r"(see|find|spot|detect|identify|observe|notice|locate|contain|have|has|show|include|depict"
    r"|feature|display|present|hold|appear|exist)"
)
_THERE = (
    r"(present|visible|there|seen|shown|depicted|found|detected|pictured|included|here|anywhere"
    r"|in (the|this|that|any)|part of|among|apparent|observed|displayed|featured|evident)"
)
_NOT = r"(?:n't|n’t|\bnot|\bcannot|\bnever)"
_PICTURE = "image picture photo photograph scene frame shot video view figure"
_STOP = frozenset(
    f"{_PICTURE} is are was were there a an any the in this that of on at it its do does did you "
    "see can could have has contain contains show shows please answer yes or no using single word "
    "phrase with to and i be one some shown visible present".split()
)


@dataclass(frozen=True)
class Asked:
    """What a question asks for.

    Attributes:
        words: content words of the thing, singular; empty where the question is not known.
        existence: whether the question is whether it is there at all.
        number: whether the question is how many there are, so that a bare number answers it.
    """

    words: tuple[str, ...]
    existence: bool
    number: bool = False

    @property
    def pattern(self) -> str:
        """A regular expression for the thing's last word, alone or in the plural."""
        forms = {self.words[-1], *(k for k, v in IRREGULAR.items() if v == self.words[-1])}
        before = "" if "hot" in self.words else "(?<!hot )"
        body = "|".join(re.escape(f) for f in sorted(forms))
        return rf"(?<![\w-]){before}(?:{body})(?:s|es)?(?![\w-])"


def asked(question: str) -> Asked:
    """The thing a yes/no question asks for."""
    lines = clean(question).lower().split("?")
    text = re.sub(
        r"\b(in|on|of|from) (the|this|that) (\w+ )?(image|picture|photo|video)\b", "", lines[0]
    )
    exists = bool(
        re.search(
            r"\b(is|are|was|were) there\b|\b(contain|show|depict|have|include)\b|\bsee\b", text
        )
    )
    words = [singular(w) for w in re.findall(r"[\w-]+", text) if w not in _STOP]
    return Asked(tuple(words), exists, "how many" in text)


def read_yes_no(text: str, question: str = "") -> str | None:
    """ "yes", "no", or None where a careful reader finds neither or both."""
    said = clean(text).lower().strip()
    for pattern, verdict in _FOREIGN:
        if pattern.search(said):
            return verdict
    if said.strip(".,:;()[]!\"'") in ("y", "n"):
        return "yes" if "y" in said else "no"
    both = bool(_BOTH.search(said))
    said = _BOTH.sub(" ", _IDIOMS.sub(" ", said))
    sentences = [s.strip(" ,\"'()-") for s in re.split(r"(?<=[.!?;])\s+|\n+", said)]
    sentences = [s for s in sentences if s and not s.endswith("?")]
    outright, corrected = _outright(sentences)
    about = _about(sentences, asked(question))
    unsure = any(_UNSURE.search(s) for s in sentences)
    return _decide(outright, corrected, about, unsure, both) or (
        None if unsure or both or outright or about else _soft(sentences)
    )


def _decide(
    outright: list[str], corrected: bool, about: list[str], unsure: bool, both: bool
) -> str | None:
    if outright:
        if len(set(outright)) > 1 and not corrected:
            return None
        verdict = outright[-1]
        against = about and verdict not in about
        return None if against and not corrected else verdict
    if unsure or both or len(set(about)) != 1:
        return None
    return about[0]


def _outright(sentences: list[str]) -> tuple[list[str], bool]:
    """Every yes and no that is said as such, and whether the last one corrects the others."""
    found: list[str] = []
    corrected = False
    for sentence in sentences:
        for hit in _HARD_WORD.finditer(sentence):
            word = hit["yes"] or hit["no"]
            verdict = _HARD[word]
            before = sentence[: hit.start()]
            if word in ("true", "false", "no", "yes") and re.search(rf"{_NOT}\s*[\"']?$", before):
                verdict = "no" if verdict == "yes" else "yes"
            if found and verdict != found[-1]:
                corrected = bool(_CORRECTION.search(before))
            found.append(verdict)
    return found, corrected


def _soft(sentences: list[str]) -> str | None:
    """ "Certainly not", "Absolutely": an answer if there is no other."""
    for pattern, verdict in _SOFT:
        if any(pattern.search(s) for s in sentences):
            return verdict
    return None


def _about(sentences: list[str], thing: Asked) -> list[str]:
    """What each clause says about the thing, where it says something."""
    found = []
    for sentence in sentences:
        if re.search(r"^if\b|\bwhether\b|\bquestion\b", sentence):
            continue
        for clause in re.split(
            r",? (?:but|however|though|although|while|whereas)\b,?|;|\. ", sentence
        ):
            verdict = _clause(clause.strip(" .!,\"'"), thing)
            if verdict is not None:
                found.append(verdict)
    return found


def _clause(clause: str, thing: Asked) -> str | None:
    if clause.isdecimal():
        return ("yes" if clause.strip("0") else "no") if thing.number else None
    if doubted := re.search(rf"{_NOT} (?:think|believe|suppose|true|the case)(?: that)? ", clause):
        rest = _clause(clause[doubted.end() :], thing)
        return {"yes": "no", "no": "yes"}.get(rest or "")
    if thing.words and re.search(thing.pattern, clause):
        if not thing.existence:
            return _property(clause, thing)
        if _denied(clause, thing.pattern):
            return "no"
        words = {singular(w) for w in re.findall(r"[\w-]+", clause)}
        bare = words <= {*thing.words, "yes", "no"}
        return "yes" if words >= set(thing.words) and not bare else None
    if thing.words:
        return _elliptic(clause)
    if _elliptic(clause) == "no" or re.search(rf"{_NOT}|\b(no|without|absent|lacks?)\b", clause):
        return "no"
    there = r"\bthere('s| is| are)\b|\bi( can)? see\b|\b(shows?|contains?|depicts?|has)\b"
    shown = rf"\b(is|are) {_THERE}|\bit is an? \w+|\bpresent$"
    return "yes" if re.search(f"{there}|{shown}", clause) else None


def _property(clause: str, thing: Asked) -> str | None:
    """For "is the dog brown?": all its words, affirmed or denied."""
    words = {singular(w) for w in re.findall(r"[\w-]+", clause)}
    if words >= set(thing.words):
        return "no" if re.search(rf"{_NOT}|\bno\b", clause) else "yes"
    return None


def _denied(clause: str, thing: str) -> bool:
    """Whether a clause says that the thing is not there."""
    gap = r"(?: (?!and\b)[\w-]+){0,3}? "
    ways = (
        rf"\b(no|zero|0|neither|nor|without|lacks?|lacking|devoid of|instead of|rather than|free of"
        rf"|absence of|hardly any|missing)(?: (?!and\b)[\w-]+){{0,2}}? {thing}",
        r"\bno (?:sign|evidence|trace|indication|hint|presence)s? (?:of|that) (?:\w+ ){0,2}"
        f"{thing}",
        rf"{_NOT}(?: (?:a|an|any|the|one|single|even|actually|really|of|be|to|on|in|with|near|using"
        rf"|riding|holding|wearing|carrying))* {thing}",
        rf"(?:{_NOT}|fails? to|unable to)(?: \w+){{0,3}}? {_SEEN}{gap}{thing}",
        rf"{_NOT} (?:seem|appear|look)\w* (?:to|like)(?: \w+){{1,4}}? {thing}",
        rf"\bnone of (?:the|these|those|them)\b.*{thing}",
        rf"(?:is|are|was|were)(?:n't| not)(?: [\w-]+){{0,3}}? {thing}",
        rf"{thing}[^,]*?(?:{_NOT})(?: be| to be| being| currently| actually| clearly)*"
        rf" (?:{_THERE}|{_SEEN})",
        rf"{thing}[^,]*?\b(absent|missing|nowhere)\b",
        rf"^(not|never) {_THERE}.*{thing}",
        rf"\bnothing\b.*{thing}",
    )
    return any(re.search(way, clause) for way in ways)


_NOTHING = re.compile(
    rf"^(nothing|none|nowhere|absent|missing|not {_THERE}|no such)\b|^zero$|\bno such\b"
    rf"|^(there|it|they|he|she|this|that|these|those)( (is|are|was|were)|'s)?(n't| not| cannot)"
    rf"( (be )?(one|any|{_THERE}|such)\b|$)"
    rf"|{_NOT} {_SEEN} (one|any|it|that|such|this|them|anything)\b(?! \w+ing)"
    rf"|^(it|this|that) (does|do|did)(n't| not)( {_SEEN})?$"
    r"|\bnot the case\b|^(only|just) "
)
_SOMETHING = re.compile(
    rf"^(it is |it's |they are |is |are )?{_THERE}$|^(one|two|three|four|five|several)$"
    r"|^(there|it|that|they)( is|'s| are| does)( indeed)?( one| two| some| several)?$"
    rf"|\b(there('s| is)|i( can)? see|shows?|contains?) (one|it|them|several|two)\b"
)


def _elliptic(clause: str) -> str | None:
    """A clause that speaks of the thing without naming it: "I don't see one", "not visible"."""
    if _NOTHING.search(clause):
        return "no"
    return "yes" if _SOMETHING.search(clause) else None
