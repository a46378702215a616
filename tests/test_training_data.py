"""What the embedded model is trained on: scenes, clips, questions, labels and words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.training import clips as clip_module
from mmtok.training.clips import PLOTS, render_clip, sample_clip, training_questions
from mmtok.training.dense import dense_batch
from mmtok.training.facts import fact_table
from mmtok.training.garments import KINDS, PLURALS, Garments
from mmtok.training.language import ask_about
from mmtok.training.pack import pope_questions
from mmtok.training.questions import CHOICE, LETTERS, as_choice, scene_questions
from mmtok.training.scenes import COLOURS, Scene, make_item, render, sample_scene
from mmtok.training.tokens import UNK, build_tokenizer
from mmtok.training.tower import IGNORE, patch_labels

pytestmark = pytest.mark.usefixtures("one_thread")


def test_upper_body_classes_are_one_kind(garments):
    assert [len(members) for members in garments.by_kind] == [16, 4, 4, 4, 4, 4, 4]
    with pytest.raises(ValueError, match="no photograph of kind"):
        Garments.from_arrays(garments.images[:2], np.array([0, 1]))


def test_the_same_seed_makes_the_same_pixels(garments):
    for seed in range(5):
        pictures = []
        for _ in range(2):
            rng = np.random.default_rng(seed)
            pictures.append(render(sample_scene(rng, garments), garments))
        assert np.array_equal(*pictures)
        assert pictures[0].shape == (112, 112, 3)


def test_items_keep_inside_and_hardly_overlap(garments):
    rng = np.random.default_rng(1)
    for _ in range(30):
        scene = sample_scene(rng, garments, number=1)
        for i, a in enumerate(scene.items):
            assert a.half_width <= a.x <= 112 - a.half_width
            assert a.half_height <= a.y <= 112 - a.half_height
            for b in scene.items[:i]:
                across = abs(a.x - b.x) - a.half_width - b.half_width
                down = abs(a.y - b.y) - a.half_height - b.half_height
                assert max(across, down) >= -2


def test_labels_of_scene_questions_follow_from_the_scene(garments):
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(150):
        scene = sample_scene(rng, garments, number=0.5)
        for question in scene_questions(scene, rng, kinds=7):
            assert check(question, scene), question
            seen.add(question.split)
    assert seen == {"existence", "colour", "count", "where", "number", "kind", "which"}


def check(question, scene: Scene) -> bool:
    """Answer `question` from the description in another way than the maker does."""
    if question.options is not None:
        line = next(w for w in question.text.splitlines() if w.startswith(f"{question.label}. "))
        text = question.text.splitlines()[1]
        return check(replace(question, text=text, label=line[3:], options=None), scene)
    words = question.text.rstrip("?").split()
    by_kind = {name: [i for i in scene.items if KINDS[i.kind] == name] for name in KINDS}
    if question.split == "existence":
        return question.label == ("yes" if by_kind[words[3]] else "no")
    if question.split == "kind":
        items = [i for i in scene.items if COLOURS[i.colour] == words[-1]]
        return {KINDS[item.kind] for item in items} == {question.label}
    if question.split == "which":
        return bool(by_kind[question.label])
    if question.split == "colour":
        return {COLOURS[item.colour] for item in by_kind[words[-1]]} == {question.label}
    if question.split == "count":
        group = scene.items if words[2] == "items" else by_kind[KINDS[PLURALS.index(words[2])]]
        return question.label == str(len(group))
    if question.split == "number":
        return question.label == scene.number.digits
    (item,) = by_kind[words[2]]
    if "half" in words:
        sides = {"left": item.x < 56, "right": item.x > 56, "top": item.y < 56}
        return (sides | {"bottom": item.y > 56})[question.label]
    (other,) = by_kind[words[-1]]
    sides = {"left": item.x < other.x, "right": item.x > other.x, "above": item.y < other.y}
    return (sides | {"below": item.y > other.y})[question.label]


def test_labels_of_clip_questions_follow_from_the_frames(garments):
    rng = np.random.default_rng(3)
    for turn in range(60):
        clip = sample_clip(rng, garments, PLOTS[turn % 3])
        assert len(clip.frames) == clip_module.FRAMES
        first, last = clip.frames[0].items, clip.frames[-1].items
        for question in clip.questions:
            if "end" in question.text:
                assert question.label == str(len(last))
            elif "first" in question.text:
                assert [KINDS[item.kind] for item in first] == [question.label]
            elif "last" in question.text:
                assert [KINDS[item.kind] for item in last] == [question.label]
            else:
                dx, dy = last[-1].x - first[-1].x, last[-1].y - first[-1].y
                way = ("right" if dx > 0 else "left") if abs(dx) > 1 else "down" if dy > 0 else "up"
                assert question.label == way
    assert render_clip(clip, garments).shape == (8, 112, 112, 3)


def test_choices_use_the_official_wording_and_mark_the_right_letter(garments):
    rng = np.random.default_rng(4)
    letters = set()
    for _ in range(40):
        clip = sample_clip(rng, garments)
        question = clip.questions[0]
        asked = as_choice(question, rng, "video")
        assert asked.options[LETTERS.index(asked.label)] == question.label
        assert len(set(asked.options)) == 4
        lines = "\n".join(f"{a}. {b}" for a, b in zip(LETTERS, asked.options, strict=True))
        wording = CHOICE.format(medium="video", question=question.text, options=lines)
        assert asked.text == wording
        letters.add(asked.label)
    assert letters == set(LETTERS)


def test_patches_are_labelled_by_what_covers_them(garments):
    rng = np.random.default_rng(5)
    item = replace(make_item(rng, garments, 5, colour=2), x=60.0, y=44.0)
    scene = Scene((item,), None, seed=1)
    owner = np.zeros((112, 112), np.int8)
    render(scene, garments, owner)
    labels = patch_labels(scene, owner)
    spot = 44 // 8 * 14 + 60 // 8
    assert labels["kind"][spot] == 5
    assert labels["colour"][spot] == 2
    assert labels["centre"].sum() == labels["centre"][spot] == 1
    assert labels["kind"][0] == len(KINDS)
    assert labels["colour"][0] == IGNORE
    assert labels["seen"].tolist() == [0, 0, 0, 0, 0, 1, 0]


def test_tokenizer_gives_back_every_question(garments):
    rng = np.random.default_rng(6)
    tokenizer = build_tokenizer()
    for _ in range(40):
        asked = ask_about(sample_scene(rng, garments), rng)
        for question in asked + training_questions(sample_clip(rng, garments), rng):
            for text in (question.text, question.label):
                ids = tokenizer(text, add_special_tokens=False).input_ids
                assert UNK not in ids
                assert tokenizer.decode(ids) == text
    assert len(tokenizer("3071", add_special_tokens=False).input_ids) == 4


@pytest.mark.parametrize("text", ["", "Zürich 😀 \t\x00", "a" * 5000, "<image><s>"])
def test_tokenizer_takes_any_text(text):
    assert isinstance(build_tokenizer()(text).input_ids, list)


def test_batches_depend_on_the_seed_alone(garments):
    images = [dense_batch(np.random.default_rng(9), garments, 64, 2)[0] for _ in range(2)]
    assert torch.equal(*images)


def test_pope_pairs_a_present_with_an_absent_kind(garments):
    rng = np.random.default_rng(10)
    scenes = [sample_scene(rng, garments) for _ in range(40)]
    splits = pope_questions(scenes, rng)
    assert set(splits) == {"random", "popular", "adversarial"}
    for pairs in splits.values():
        for pair in pairs:
            assert [question.label for question in pair] in ([], ["yes", "no"])


def test_items_share_their_one_between_patches_so_that_it_adds_up(garments):
    rng = np.random.default_rng(11)
    for _ in range(10):
        scene = sample_scene(rng, garments)
        centre = patch_labels(scene, np.zeros((112, 112), np.int8))["centre"]
        assert centre.sum() == pytest.approx(len(scene.items), abs=1e-4)
        across = (centre.reshape(14, 14).sum(axis=0) * (np.arange(14) * 8 + 4)).sum()
        assert across == pytest.approx(sum(item.x for item in scene.items), abs=8)


def test_facts_are_those_of_the_scene_or_clip(garments):
    rng = np.random.default_rng(12)
    for turn in range(30):
        clip = sample_clip(rng, garments, PLOTS[turn % 3])
        scene = clip.frames[-1]
        for thing, frames in ((clip, clip.frames), (scene, (scene,))):
            table = fact_table(thing)
            assert table.shape == (11 + len(frames), 18)
            assert [row[0] for row in table[11:]] == [len(frame.items) for frame in frames]
            for kind in range(len(KINDS)):
                shown = [item for frame in frames for item in frame.items if item.kind == kind]
                assert table[kind, 0] == scene.count(kind)
                assert table[kind, 6] == bool(shown)
                if len({item.colour for item in shown}) == 1:
                    assert table[kind, 1] == shown[0].colour
                if scene.count(kind) == 1:
                    assert table[kind, 16] == pytest.approx(shown[-1].x / 56 - 1)
                    assert table[kind, 17] == pytest.approx(shown[-1].y / 56 - 1)
    numbered = sample_scene(rng, garments, number=1)
    digits = fact_table(numbered)[8, 2:5]
    assert "".join(str(int(d)) for d in digits if d < 10) == numbered.number.digits
