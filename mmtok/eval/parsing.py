"""Three ways to read an answer.

- `official` is the rule of the benchmark's own script, quirks included, for numbers that are
  comparable with papers: POPE's (arXiv 2305.10355, RUCAIBox/POPE), MME's (arXiv 2306.13394) and
  Video-MME's (arXiv 2405.21075, MME-Benchmarks/Video-MME), from their published rules.
- `strict` takes only an answer that is nothing but the answer.
- `robust` is a careful reader that says "unreadable" (None) rather than guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mmtok.errors import InputError
from mmtok.eval.choice import read_choice
from mmtok.eval.text import clean
from mmtok.eval.yesno import read_yes_no
from mmtok.registry import unknown

PARSERS = ("robust", "strict", "official")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Reader = Callable[[str, Sequence[str]], str | None]
"""(answer, context) -> verdict; the context is the options of a choice, or the yes/no question."""


def check_parser(parser: str) -> None:
    """Refuse an unknown parser.

    Raises:
        InputError: it is.
    """
    if parser not in PARSERS:
        raise InputError(unknown("parser", parser, list(PARSERS)))


def read(
    text: str, kind: str, parser: str, options: Sequence[str] = (), question: str = ""
) -> str | None:
    """What an answer says, None where it says nothing that can be read.

    Args:
        text: the model's answer.
        kind: "yesno", "choice", "word" or "caption".
        parser: one of PARSERS.
        options: texts of the options of a choice, in the order of their letters.
        question: what was asked; the robust reader of yes/no needs it to tell about which thing
            a sentence speaks.

    Returns:
        "yes" or "no", a capital letter, a lower-case word, or the caption.
    """
    return READERS[kind, parser](text, [question] if kind == "yesno" else options)


def official_pope(text: str, options: Sequence[str] = ()) -> str | None:
    """POPE: no, if one of three spellings stands before the first full stop; in all else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def official_mme(text: str, options: Sequence[str] = ()) -> str | None:
    """MME: yes or no alone, else whichever of the two is within the first four characters."""
    lower = text.lower()
    if lower in ("yes", "no"):
        return lower
    return next((word for word in ("yes", "no") if word in lower[:4]), None)


_VIDEOMME_PREFIXES = (
    *("The best answer is", "The correct answer is", "The answer is", "The answer"),
    *("The best option isThe correct option is", "Best answer:Best option:"),
    *("Answer:", "Option:", "The correct answer", "The correct option"),
)
"""Two of them are two phrases glued together, as a missing comma makes them in the script."""


def official_video_mme(text: str, options: Sequence[str] = ()) -> str | None:
    """Video-MME: some openings are cut, then the first capital option letter anywhere."""
    rest = text.strip()
    for prefix in _VIDEOMME_PREFIXES:
        rest = rest.replace(prefix, "")
    found = re.search(f"[{LETTERS[: len(options) or 4]}]", rest)
    return found[0] if found else None


def _bare(text: str) -> str:
    """The answer in lower case without white space around it and a full stop behind it."""
    return text.strip().removesuffix(".").lower()


def strict_yes_no(text: str, options: Sequence[str] = ()) -> str | None:
    """Yes or no and nothing else."""
    return word if (word := _bare(text)) in ("yes", "no") else None


def strict_choice(text: str, options: Sequence[str] = ()) -> str | None:
    """One letter of an option and nothing else, but brackets around it or a mark behind it."""
    letters = LETTERS[: len(options) or 4]
    found = re.fullmatch(r"[(\[]?([a-z])[)\]:.]?", text.strip().lower())
    return letter if found and (letter := found[1].upper()) in letters else None


def strict_word(text: str, options: Sequence[str] = ()) -> str | None:
    """The answer as it stands."""
    return _bare(text) or None


def robust_word(text: str, options: Sequence[str] = ()) -> str | None:
    """The answer without the markup and the phrase around it."""
    said = re.sub(r"^(the )?(final )?answer( is)?\s*:?\s*", "", clean(text).lower())
    return said.strip(" .!\"'") or None


def _caption(text: str, options: Sequence[str] = ()) -> str | None:
    return text


READERS: dict[tuple[str, str], Reader] = {
    ("yesno", "official"): official_pope,
    ("yesno", "strict"): strict_yes_no,
    ("yesno", "robust"): lambda text, context: read_yes_no(text, *context[:1]),
    ("choice", "official"): official_video_mme,
    ("choice", "strict"): strict_choice,
    ("choice", "robust"): read_choice,
    ("word", "official"): strict_word,
    ("word", "strict"): strict_word,
    ("word", "robust"): robust_word,
    **{("caption", parser): _caption for parser in PARSERS},
}
