"""The recipe of the embedded model: scenes, questions, sequences, and the model it made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmtok.training import clips as clip_module
from mmtok.training.align import align
from mmtok.training.clips import PLOTS, render_clip, sample_clip, training_questions
from mmtok.training.dense import DenseSettings, dense_batch, train_tower
from mmtok.training.garments import KINDS, PLURALS, Garments
from mmtok.training.language import LanguageSettings, LanguageTrainer, ask_about, encode
from mmtok.training.model import build_model, build_processor, export
from mmtok.training.optim import Muon, schedule
from mmtok.training.pack import make_pack, pope_questions
from mmtok.training.questions import CHOICE, LETTERS, as_choice, scene_questions
from mmtok.training.scenes import COLOURS, Scene, make_item, render, sample_scene
from mmtok.training.score import score_pack
from mmtok.training.sequences import answer_scores, pack_questions, prefix_ids
from mmtok.training.tokens import EOS, IMAGE, UNK, build_tokenizer
from mmtok.training.tower import IGNORE, DenseHeads, build_tower, patch_labels, run_tower, to_pixels

SHIPPED = Path(__file__).parents[1] / "mmtok" / "models" / "data" / "tiny"
PACK = Path(__file__).parents[1] / "eval" / "data" / "scenes"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def garments() -> Garments:
    rng = np.random.default_rng(0)
    images = np.zeros((40, 28, 28), np.uint8)
    for image in images:
        w, h = rng.integers(10, 25, 2)
        image[14 - h // 2 : 14 + h // 2, 14 - w // 2 : 14 + w // 2] = rng.integers(120, 255)
    return Garments.from_arrays(images, np.arange(40) % 10)


@pytest.fixture(scope="module")
def model():
    return build_model(build_tower(seed=3), seed=3).eval()


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
    assert seen == {"existence", "colour", "count", "where", "number"}


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


@pytest.mark.parametrize("images", [1, 3])
def test_block_mask_equals_separate_questions(garments, model, images):
    rng = np.random.default_rng(7)
    tokenizer = build_tokenizer()
    scenes = [sample_scene(rng, garments) for _ in range(images)]
    features = encode(model, np.stack([render(s, garments) for s in scenes])).float()
    features = features.flatten(0, 1)[None]
    asked = scene_questions(scenes[0], rng)
    with torch.no_grad():
        together, targets = answer_scores(
            model, pack_questions(tokenizer, [asked], images), features
        )
        alone = [
            answer_scores(model, pack_questions(tokenizer, [[question]], images), features)
            for question in asked
        ]
    assert torch.equal(targets, torch.cat([target for _, target in alone]))
    torch.testing.assert_close(together, torch.cat([s for s, _ in alone]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("images", [1, 2])
def test_processor_and_plain_forward_equal_the_training_sequence(garments, model, images):
    rng = np.random.default_rng(8)
    scene = sample_scene(rng, garments)
    picture = render(scene, garments)
    question = scene_questions(scene, rng)[0]
    processor = build_processor()
    content = [{"type": "image"}] * images + [{"type": "text", "text": question.text}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    pictures = [Image.fromarray(picture)] * images
    inputs = processor(text=text, images=pictures, return_tensors="pt")
    sequences = pack_questions(build_tokenizer(), [[question]], images)
    length = inputs.input_ids.shape[1]
    assert torch.equal(inputs.input_ids, sequences.ids[:, :length])
    assert int((inputs.input_ids == IMAGE).sum()) == 196 * images
    with torch.no_grad():
        plain = model(**inputs).logits[0, -1]
        hidden = run_tower(model.model.vision_tower, to_pixels(picture[None]))[:, 1:]
        features = hidden.repeat(1, images, 1)
        scores, targets = answer_scores(model, sequences, features)
    assert targets[-1] == EOS
    torch.testing.assert_close(plain, scores[0], atol=1e-4, rtol=0)


def test_a_window_reads_its_own_position_embeddings():
    tower = build_tower().eval()
    pixels = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        whole = run_tower(tower, pixels)
        stock = tower(pixels).last_hidden_state
        corner = run_tower(tower, pixels[..., 64:, 64:], (8, 8))
    torch.testing.assert_close(whole, stock, atol=1e-5, rtol=0)
    assert corner.shape == (1, 37, 128)


def test_both_stages_train_save_and_resume(garments, tmp_path):
    tower = build_tower(layers=1)
    heads = DenseHeads(128)
    lines: list[str] = []
    settings = DenseSettings(seconds=0.05, tokens=128)
    first = train_tower(tower, heads, garments, settings, tmp_path, lines.append)
    longer = replace(settings, seconds=first["seconds"] + 0.02)
    again = train_tower(tower, heads, garments, longer, tmp_path, lines.append)
    assert again["step"] > first["step"] > 0
    model = build_model(tower)
    hidden = run_tower(tower, torch.randn(4, 3, 112, 112)).detach()
    assert align(model, heads, hidden, steps=20) < 1
    small = LanguageSettings(seconds=0.02, scene_batch=1, clip_batch=1, pool=16, clips_from=0)
    trainer = LanguageTrainer(model, garments, small, tmp_path)
    done = trainer.train(lines.append)
    assert LanguageTrainer(model, garments, small, tmp_path).state["step"] == done["step"] > 0


def test_batches_depend_on_the_seed_alone(garments):
    images = [dense_batch(np.random.default_rng(9), garments, 64, 2)[0] for _ in range(2)]
    assert torch.equal(*images)


def test_muon_steps_are_orthogonal_and_the_schedule_ends_at_zero():
    weight = torch.nn.Parameter(torch.zeros(8, 16))
    weight.grad = torch.randn(8, 16)
    Muon([weight], lr=1.0, weight_decay=0).step()
    singular = torch.linalg.svdvals(weight.detach())
    assert 0.5 < singular.min() / singular.max() <= 1
    assert [schedule(done) for done in (0.0, 0.3, 1.0, 2.0)] == [0, 1, 0, 0]


def test_pope_pairs_a_present_with_an_absent_kind(garments):
    rng = np.random.default_rng(10)
    scenes = [sample_scene(rng, garments) for _ in range(40)]
    splits = pope_questions(scenes, rng)
    assert set(splits) == {"random", "popular", "adversarial"}
    for pairs in splits.values():
        for pair in pairs:
            assert [question.label for question in pair] in ([], ["yes", "no"])


def test_a_pack_is_written_and_scored(garments, model, tmp_path):
    number = make_pack(garments, tmp_path, scenes=3, clips=1)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == number
    assert all((tmp_path / (row.get("image") or row["video"])).exists() for row in rows)
    figures = score_pack(model, tmp_path)
    assert figures["clip"]["n"] == 2
    assert 0 <= figures["existence"]["f1"] <= 1


def test_the_shipped_pack_is_what_its_readme_says():
    rows = [json.loads(line) for line in (PACK / "questions.jsonl").read_text().splitlines()]
    pope = [row for row in rows if row["split"] in ("random", "popular", "adversarial")]
    videos = {row["video"] for row in rows if "video" in row}
    assert len(pope) >= 1800
    assert len([row for row in rows if "image" in row]) - len(pope) >= 600
    assert len(videos) >= 100
    files = [path for path in PACK.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert len(prefix_ids(build_tokenizer(), 8)) > 8 * 196


def test_an_export_loads_with_plain_transformers(model, tmp_path):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    export(model, tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float16
    assert AutoProcessor.from_pretrained(tmp_path).patch_size == 8
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.skipif(not (SHIPPED / "model.safetensors").exists(), reason="no shipped model")
def test_the_shipped_model_answers():
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(SHIPPED)
    rows = [json.loads(line) for line in (PACK / "questions.jsonl").read_text().splitlines()]
    right = 0
    for row in rows[:40]:
        content = [{"type": "image"}, {"type": "text", "text": row["text"]}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        picture = Image.open(PACK / row["image"])
        inputs = processor(text=text, images=picture, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        answer = processor.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        assert answer in ("yes", "no")
        right += answer == row["label"]
    assert right >= 28
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 16_000_000
