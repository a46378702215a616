"""Reading answers: official rules as published, a strict one, and a careful reader."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from mmtok.errors import InputError
from mmtok.eval.parsing import (
    PARSERS,
    check_parser,
    official_mme,
    official_pope,
    official_video_mme,
    read,
)

GOLDEN = Path(os.environ.get("MMTOK_GOLDEN", "not-given")) / "eval" / "parsing_cases.json"
QUESTION = "Is there a snowboard in the image?"
FRUIT = ["A ripe pear.", "An onion.", "Two lemons.", "Dark grapes."]

YES_NO = {
    "yes": "yes",
    "NO!": "no",
    "**No**": "no",
    "Yes/No: Yes": "yes",
    "No snowboard.": "no",
    "A man rides a snowboard down the hill.": "yes",
    "The man is on skis, not on a snowboard.": "no",
    "There are several snowboards.": "yes",
    "There doesn't seem to be a snowboard.": "no",
    "I do not think there is a snowboard.": "no",
    "None of the objects is a snowboard.": "no",
    "No skis are visible, but a snowboard is.": "yes",
    "There is a sledge. There is no snowboard.": "no",
    "Yes, though no skis.": "yes",
    "No doubt, there is a snowboard.": "yes",
    "Not only a sledge but also a snowboard is there.": "yes",
    "The snowboard is not moving.": "yes",
    "It isn't there.": "no",
    "I don't see one.": "no",
    "Only skis.": "no",
    "Certainly not.": "no",
    "Wait, no. Actually yes.": "yes",
    "<think>no? no snowboard at first</think>Yes": "yes",
    '{"answer": "no"}': "no",
    "\\boxed{\\text{No}}": "no",
    "ＹＥＳ": "yes",
    "没有": "no",
    "Oui.": "yes",
    "Yes, there is no snowboard.": None,
    "Yes and no.": None,
    "Yes. No.": None,
    "I can't tell.": None,
    "It might be a snowboard.": None,
    "I cannot view images.": None,
    "The picture is not sharp.": None,
    "<think>yes, I see": None,
    QUESTION: None,
    "snowboard": None,
    "6": None,
    "0": None,
    "3.": None,
    "": None,
}

CHOICES = {
    "b": "B",
    "(C)": "C",
    "D) Dark grapes": "D",
    "answer: c": "C",
    "Based on the video, the answer is C.": "C",
    "Best option: D": "D",
    "An onion.": "B",
    "He buys two lemons first.": "C",
    "The answer is an onion.": "B",
    "grapes": "D",
    "It is not A, it is D.": "D",
    "A is wrong. B is wrong. So C.": "C",
    "A? No, B.": "B",
    "Neither A nor B. C.": "C",
    "A man walks in; so the best choice would be D": "D",
    "A is the correct answer.": "A",
    "The answer is B, not C.": "B",
    "选B": "B",
    "\\boxed{C}": "C",
    "D D D": "D",
    "The answer is B or C": None,
    "A, B": None,
    "ABCD": None,
    "E": None,
    "C. An onion.": None,
    "All of the above": None,
    "Cannot be determined": None,
    "Vitamin C helps": None,
    "A. A ripe pear. B. An onion. C. Two lemons. D. Dark grapes.": None,
    "": None,
}


@pytest.mark.parametrize("text", YES_NO)
def test_a_careful_reader_of_yes_and_no(text):
    assert read(text, "yesno", "robust", question=QUESTION) == YES_NO[text]


@pytest.mark.parametrize("text", CHOICES)
def test_a_careful_reader_of_choices(text):
    assert read(text, "choice", "robust", FRUIT) == CHOICES[text]


def test_a_bare_number_answers_how_many_alone():
    for text, verdict in (("6", "yes"), ("0", "no")):
        assert read(text, "yesno", "robust", question="How many dogs are there?") == verdict
        assert read(text, "yesno", "robust") is None


def test_without_a_question_every_clause_is_the_answer():
    for text, verdict in (
        ("There is a dog in the image.", "yes"),
        ("There is no dog.", "no"),
        ("The image shows a cat, not a dog.", "no"),
        ("The image is not clear.", None),
    ):
        assert read(text, "yesno", "robust") == verdict


def test_eight_options_and_words_of_options():
    eight = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    assert read("The answer is G.", "choice", "robust", eight) == "G"
    assert read("(h)", "choice", "robust", eight) == "H"
    assert read("There are seven.", "choice", "robust", eight) == "G"
    assert read("I cannot say", "choice", "robust", ["x"] * 9) is None
    assert read("dark green", "choice", "robust", ["red", "green", "dark green"]) == "C"


def test_the_official_rules_with_their_quirks():
    pope = {"NO": "yes", "": "yes", "Not sure, no": "no", "yes. no": "yes", "I'm not sure": "no"}
    assert {text: official_pope(text) for text in pope} == pope
    mme = {"Notebook": "no", "yes.": "yes", "The answer is yes": None, "Eyes": "yes"}
    assert {text: official_mme(text) for text in mme} == mme
    video = {"c": None, "Based on it, C": "B", "Answer: D": "D", "Choice D": "C", "": None}
    assert {text: official_video_mme(text) for text in video} == video
    assert official_video_mme("H", ["x"] * 8) == "H"


def test_the_strict_rule_takes_bare_answers_alone():
    assert read(" Yes.\n", "yesno", "strict") == "yes"
    assert read("Yes, it is", "yesno", "strict") is None
    assert read("(b)", "choice", "strict", FRUIT) == "B"
    assert read("e", "choice", "strict", FRUIT) is None
    assert read("B it is", "choice", "strict", FRUIT) is None


def test_words():
    assert read(" Red. ", "word", "strict") == read("**red**", "word", "robust") == "red"
    assert read("The answer is 7", "word", "robust") == "7"
    assert read("", "word", "official") is None


def test_an_unknown_parser_is_refused():
    with pytest.raises(InputError, match="did you mean 'robust'"):
        check_parser("robus")


@pytest.mark.parametrize(
    "text", ["<think>", "dog not ", "A, B, ", "answer ", "{", "\\boxed{", "yes no ", "is not the "]
)
def test_hostile_answers_are_read_quickly(text):
    began = time.perf_counter()
    for kind in ("yesno", "choice", "word"):
        for parser in PARSERS:
            read(text * 20_000, kind, parser, FRUIT, "Is there a dog?")
    assert time.perf_counter() - began < 10


@pytest.mark.skipif(not GOLDEN.is_file(), reason="MMTOK_GOLDEN names no folder of parsing cases")
def test_golden_cases():
    golden = json.loads(GOLDEN.read_text())
    right = wrong_answers = total = 0
    for section, kind in (("yes_no", "yesno"), ("multiple_choice", "choice")):
        question, options = golden[section]["question"], golden[section].get("options", ())
        for case in golden[section]["cases"]:
            text = case["input"]
            if kind == "yesno":
                assert official_pope(text) == case["official_pope"], text
                assert (official_mme(text) or "other") == case["official_mme"], text
            else:
                found = official_video_mme(text, options)
                assert (found or "unreadable") == case["official_videomme"], text
            verdict = read(text, kind, "robust", options, question) or "unreadable"
            right += verdict == case["correct"]
            wrong_answers += verdict not in (case["correct"], "unreadable")
            total += 1
            strict = read(text, kind, "strict", options, question)
            assert strict in (None, case["correct"]), text
    assert right >= 0.97 * total
    assert wrong_answers <= 0.01 * total
