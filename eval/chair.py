"""CHAIR: objects that captions mention and pictures do not show (arXiv 1809.02156,
github.com/LisaAnne/Hallucination).

CHAIR_i is the share of object mentions that are hallucinated, CHAIR_s the share of captions with
one, recall the share of the picture's objects that is mentioned. What a picture shows comes from
its boxes and its reference captions. Deviations: the table of synonyms is our own, with colours
and double words taken apart by rule, so figures are comparable among runs of this task and not
with published ones; nothing is downloaded; a model that mentions nothing is scored.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmtok.errors import InputError
from mmtok.eval import metrics
from mmtok.eval.base import Item, Row, Sums, Task
from mmtok.eval.files import field, read_json, read_rows, read_text, texts
from mmtok.eval.objects import coco_synonyms


@dataclass(frozen=True, kw_only=True)
class Chair(Task):
    """Captions of pictures whose objects are known.

    Attributes:
        questions: rows with `image` (a file name), `objects` (class names) and `captions`; or
            COCO's instances file.
        captions: COCO's captions file, beside an instances file.
        instruction: what the model is asked.
        cut_sentence: leave out a last sentence that the length limit cut off, before counting.
            Longer captions hallucinate more: compare at equal length.
    """

    lower_is_better: ClassVar[bool] = True
    answers: ClassVar[tuple[str, ...]] = ("caption",)
    scoring: ClassVar[tuple[str, ...]] = ("cut_sentence",)
    paths: ClassVar[tuple[str, ...]] = ("questions", "media", "subtitles", "captions")

    captions: Path | None = None
    instruction: str = "Please describe this image in detail."
    cut_sentence: bool = False
    max_new_tokens: int = 64

    def items(self) -> list[Item]:
        """One caption a picture."""
        if self.questions is None:
            raise InputError(
                "chair needs questions: rows with image, objects and captions, or COCO's instances "
                "file (with captions=... for its captions)"
            )
        folder = self.media or self.questions.parent
        return [
            Item(
                split="captions",
                question_id=image,
                text=self.instruction + self.suffix,
                medium=image,
                file=folder / image,
                kind="image",
                answer="caption",
                label=sorted(objects),
            )
            for image, objects in _pictures(self.questions, self.captions)
        ]

    def tally(self, rows: Sequence[Row], parser: str) -> dict[str, float]:
        """Mentions, hallucinated ones, and the length of the captions."""
        counts: dict[str, float] = defaultdict(float)
        counts.update(dict.fromkeys(_COUNTS, 0.0))
        for row, text in zip(rows, self.said(rows, parser), strict=True):
            if text is None:
                continue
            caption = whole_sentences(text) if self.cut_sentence else text
            mentions, there = coco_synonyms().mentions(caption), set(row["label"])
            false = [name for name in mentions if name not in there]
            counts["captions"] += 1
            counts["with_false"] += bool(false)
            counts["mentions"] += len(mentions)
            counts["false"] += len(false)
            counts["there"] += len(there)
            counts["named"] += len(there & set(mentions))
            counts["words"] += len(caption.split())
        return dict(counts)

    def figures(self, sums: Sums) -> dict[str, Any]:
        """CHAIR_s, CHAIR_i (0 without a mention), recall, words and mentions per caption."""
        return {
            "chair_s": metrics.share(sums["with_false"], sums["captions"]),
            "chair_i": np.nan_to_num(metrics.share(sums["false"], sums["mentions"])),
            "recall": metrics.share(sums["named"], sums["there"]),
            "words": metrics.share(sums["words"], sums["captions"]),
            "mentions": metrics.share(sums["mentions"], sums["captions"]),
        }

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """Whether cut sentences were left out, and how many captions end in one."""
        texts = [str(row["answer"]) for row in rows if "answer" in row]
        cut = sum(not re.search(_END + "$", text.strip()) for text in texts)
        done = "counted (cut_sentence=True leaves them out)"
        if self.cut_sentence:
            done = "left out (unless it is the only one)"
        notes = [f"{cut} of {len(texts)} captions end in an unfinished sentence, which is {done}"]
        if failed := len(rows) - len(texts):
            notes.append(
                f"{failed} failed captions are left out: they mention nothing, true or false"
            )
        return notes


_END = r"[.!?][\"')\]]*"
_COUNTS = ("captions", "with_false", "mentions", "false", "there", "named", "words")


def whole_sentences(caption: str) -> str:
    """The caption up to its last full stop; as it is where there is none."""
    text = caption.strip()
    found = re.match(rf"(?s).*{_END}(?=\s|$)", text)
    return found[0] if found else text


def _pictures(file: Path, captions: Path | None) -> Iterator[tuple[str, set[str]]]:
    """(file name, classes) of every picture."""
    found = _coco(file, captions) if _is_document(file) else _rows(file)
    known = coco_synonyms()
    for where, image, objects, said in found:
        named = set(objects)
        if unknown := named - set(known.classes):
            raise InputError(f"{where}: {sorted(unknown)[0]!r} is none of COCO's 80 classes")
        yield image, named | {name for text in said for name in known.mentions(text)}


def _is_document(file: Path) -> bool:
    """Whether it is one JSON object over several lines, or one with `images`, and not rows."""
    text = read_text(file, "pictures with their objects").lstrip()
    first = text.split("\n", 1)[0]
    return text.startswith("{") and ('"images"' in first or not first.rstrip().endswith("}"))


def _rows(file: Path) -> Iterator[tuple[str, str, Sequence[str], Sequence[str]]]:
    for number, row in enumerate(read_rows(file), 1):
        where = f"{file}, picture {number}"
        field(row, "objects", where)
        image = str(field(row, "image", where))
        yield where, image, texts(row, "objects", where), texts(row, "captions", where)


def _coco(
    file: Path, captions: Path | None
) -> Iterator[tuple[str, str, Sequence[str], Sequence[str]]]:
    data = read_json(file)
    names = {}
    for where, row in _table(data, "categories", file):
        names[_id(row, "id", where)] = str(field(row, "name", where))
    objects: dict[str, set[str]] = defaultdict(set)
    for where, box in _table(data, "annotations", file) if "annotations" in data else ():
        if (category := _id(box, "category_id", where)) not in names:
            raise InputError(f"{where}: category_id {category} is none of the categories")
        objects[_id(box, "image_id", where)].add(names[category])
    written: dict[str, list[str]] = defaultdict(list)
    for where, row in _table(read_json(captions), "annotations", captions) if captions else ():
        written[_id(row, "image_id", where)].append(str(field(row, "caption", where)))
    for where, image in _table(data, "images", file):
        number = _id(image, "id", where)
        own = {*objects[number], *texts(image, "objects", where)}
        said = [*written[number], *texts(image, "captions", where)]
        yield where, str(field(image, "file_name", where)), sorted(own), said


def _id(row: Mapping[str, Any], name: str, where: str) -> str:
    return str(field(row, name, where))


def _table(data: Any, name: str, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of a table of the file."""
    rows = data.get(name) if isinstance(data, Mapping) else None
    if not isinstance(rows, list):
        raise InputError(f"{file}: no list of {name!r}; expected a file of COCO's annotations")
    for number, row in enumerate(rows, 1):
        where = f"{file}, {name} {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object, got {str(row)[:60]!r}")
        yield where, row
