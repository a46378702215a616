"""Conversations as prompts: places for media, clips read as pictures, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

import mmtok
from mmtok.models.turns import as_turns, frames_as_images
from mmtok.training.tokens import TEMPLATE

PLACE, CLIP = {"type": "image"}, {"type": "video"}


def said(role: str, *parts: Any) -> dict[str, Any]:
    return {
        "role": role,
        "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts],
    }


def test_a_question_is_one_turn_behind_its_media() -> None:
    assert as_turns("what?", 1, 1) == [said("user", PLACE, CLIP, "what?")]


def test_a_clip_becomes_its_frames_where_it_stands() -> None:
    turns = as_turns([said("user", CLIP, "a", PLACE), said("user", CLIP, "b")], 1, 2)
    made, pictures = frames_as_images(turns, ["x"], [["p", "q"], ["r"]])
    assert made == [said("user", PLACE, PLACE, "a", PLACE), said("user", PLACE, "b")]
    assert pictures == ["p", "q", "x", "r"]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_turns_reach_the_model(family: str) -> None:
    """A conversation of one turn is the question; a longer one begins with its first turns."""
    lvlm = mmtok.load(family, dummy=True)
    picture = Image.linear_gradient("L").convert("RGB").resize((56, 56))
    plain = lvlm.inputs_batch([([picture], None, "what?")])
    first = said("user", PLACE, "what?")
    one = lvlm.inputs_batch([([picture], None, [first])])
    assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in plain.items()}
    more = [said("system", "Be short."), first, said("assistant", "it."), said("user", "why?")]
    text = lvlm.processor.tokenizer.decode(
        lvlm.inputs_batch([([picture], None, more)])["input_ids"][0]
    )
    places = [text.index(part) for part in ("Be short.", "what?", "it.", "why?")]
    assert places == sorted(places)


def test_a_system_turn_is_one_text() -> None:
    turns = as_turns([said("system", "AA", "BB"), said("user", PLACE, "c", "d")], 1, 0)
    assert turns == [said("system", "AABB"), said("user", PLACE, "c", "d")]


def test_a_template_that_refuses_names_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lvlm = mmtok.load("llava", dummy=True)
    monkeypatch.setattr(lvlm.processor, "chat_template", "{{ raise_exception('not so') }}")
    with pytest.raises(mmtok.InputError) as refused:
        lvlm.inputs_batch([(None, None, "hi")])
    assert str(refused.value) == f"{lvlm.name}: not so (roles: user)"


def test_a_template_that_refuses_is_not_put_down_to_the_clips(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lvlm = mmtok.load("llava_onevision", dummy=True)
    monkeypatch.setattr(lvlm.processor, "chat_template", "{{ raise_exception('not so') }}")
    picture = Image.linear_gradient("L").convert("RGB")
    with pytest.raises(mmtok.InputError) as refused:
        lvlm.inputs_batch([(None, [[picture] * n], "hi") for n in (2, 3)])
    assert str(refused.value) == f"{lvlm.name}: not so (roles: user)"


def test_a_processor_without_a_template_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lvlm = mmtok.load("llava", dummy=True)
    monkeypatch.setattr(lvlm.processor, "chat_template", None)
    with pytest.raises(mmtok.InputError, match="chat template") as refused:
        lvlm.inputs_batch([(None, None, "hi")])
    assert str(refused.value).startswith(f"{lvlm.name}: ")


def test_the_markers_of_tiny_never_stick_to_what_was_said() -> None:
    lvlm = mmtok.load("tiny")
    turns = [
        said("system", "Be short"),
        said("user", PLACE, "Is there a bag in the image?"),
        said("assistant", "yes"),
        said("user", "Which items"),
    ]
    picture = Image.linear_gradient("L").convert("RGB")
    tokenizer = lvlm.processor.tokenizer
    ids = lvlm.inputs_batch([([picture], None, turns)])["input_ids"][0].tolist()
    assert ids.count(tokenizer.convert_tokens_to_ids("USER")) == 2
    assert ids.count(tokenizer.convert_tokens_to_ids(" ASSISTANT")) == 2
    assert ids.count(tokenizer.unk_token_id) == 2  # "Be" and " short"
    one = lvlm.processor.apply_chat_template([said("user", PLACE, "x")], add_generation_prompt=True)
    assert one == "USER: <image>\nx ASSISTANT:"
    assert lvlm.processor.chat_template == TEMPLATE


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "list of turns"),
        (5, "list of turns"),
        (["hello"], "a turn must have"),
        ([said("tool", "x")], "a turn must have"),
        ([{"role": "user", "content": "x"}], "a turn must have"),
        ([said("user", {"type": "audio"})], "a turn must have"),
        ([said("user", "x")], "0 images and 0 videos, got 1 and 0"),
        ([said("user", PLACE, "\ud800")], "valid Unicode"),
        ([said("system", PLACE, "x"), said("user", "y")], "a system turn takes text alone"),
    ],
)
def test_what_cannot_be_read_is_refused(turns: Any, reason: str) -> None:
    with pytest.raises(mmtok.InputError, match=reason):
        as_turns(turns, 1, 0)
