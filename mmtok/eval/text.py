"""The answer without what is wrapped around it: reasoning, markup, JSON, odd characters."""

from __future__ import annotations

import json
import re
import unicodedata

_TAG = re.compile(r"<(/?)(think|thinking|reasoning|thought)>", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>(.*?)(</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_LATEX = re.compile(r"\\(?:boxed|text|textbf|mathbf|mathrm|fbox)\s*\{([^{}]*)\}")
_ANSWER_KEYS = ("final_answer", "answer", "response", "prediction", "choice", "option", "output")
LONGEST = 100_000
"""Characters looked at in an answer."""
READ = 2_000
"""Characters read at each end of what is left of it."""
IRREGULAR = {
    "people": "person",
    "persons": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "knives": "knife",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "wolves": "wolf",
    "leaves": "leaf",
    "shelves": "shelf",
    "buses": "bus",
    "skis": "ski",
    "shoes": "shoe",
    "scarves": "scarf",
    "oxen": "ox",
    "calves": "calf",
}
"""Plurals that no rule gives."""


def clean(text: str) -> str:
    """The answer in plain words; "" where nothing is left, as after reasoning that never ended."""
    text = unicodedata.normalize("NFKC", text[:LONGEST])
    text = text.translate(_SAME)
    text = _without_reasoning(text)
    if found := _TAGGED.search(text):
        text = found[1]
    text = _from_json(text)
    for _ in range(3):  # boxes within boxes
        text = _LATEX.sub(r" \1 ", text)
    text = re.sub(r"```\w*", " ", text)
    text = re.sub(r"[*`$#~]|__|\\[()\[\]]", "", text)
    text = re.sub(r"<\|[^|<>]*\|>|</?(?:s|[a-z_]{2,})/?>", " ", text, flags=re.IGNORECASE)
    text = text.strip()
    return text if len(text) <= 2 * READ else f"{text[:READ]}\n{text[-READ:]}"


def _without_reasoning(text: str) -> str:
    """What stands outside the tags; nothing behind a tag that is never closed, nor before a
    closing one without an opening one.
    """
    outside, start, depth = [], 0, 0
    for tag in _TAG.finditer(text):
        if not tag[1]:
            if depth == 0:
                outside.append(text[start : tag.start()])
            depth += 1
            continue
        if depth == 0:
            outside.clear()
        depth = max(depth - 1, 0)
        start = tag.end()
    return " ".join([*outside, text[start:]] if depth == 0 else outside)


_SAME = str.maketrans(
    {"’": "'", "‘": "'", "´": "'", "“": '"', "”": '"', "。": ".", "、": ",", "—": " - ", "–": " - "}
)


def _from_json(text: str) -> str:
    """The value under the key of a JSON object that is called an answer."""
    inner = re.sub(r"\A\s*```(?:json)?|```\s*\Z", "", text).strip()
    if not inner.startswith("{"):
        return text
    try:
        found = json.loads(inner)
    except (ValueError, RecursionError):
        return text
    by_name = {str(key).lower(): value for key, value in found.items()}
    for key in _ANSWER_KEYS:
        value = by_name.get(key)
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, str | int):
            return str(value)
    return text


def singular(word: str) -> str:
    """A word without the ending of its plural, roughly."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(ch|sh|ss|x)es$", word):
        return word[:-2]
    return word[:-1] if re.search(r"[^su]s$", word) and len(word) > 3 else word
