"""The recipe of the embedded model: sequences, training, scoring, and the model it made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmtok.training.align import align
from mmtok.training.counting import least_needed_head, start_naming, start_reading
from mmtok.training.dense import DenseBeside, DenseSettings, fit_heads, train_tower
from mmtok.training.language import LanguageSettings, LanguageTrainer
from mmtok.training.model import build_model, build_processor, export
from mmtok.training.optim import Muon, schedule
from mmtok.training.pack import make_pack
from mmtok.training.pool import encode
from mmtok.training.questions import scene_questions
from mmtok.training.scenes import render, sample_scene
from mmtok.training.score import score_pack
from mmtok.training.sequences import answer_scores, pack_questions, prefix_ids
from mmtok.training.tokens import EOS, IMAGE, build_tokenizer
from mmtok.training.tower import DenseHeads, build_tower, run_tower, to_pixels

SHIPPED = Path(__file__).parents[1] / "mmtok" / "models" / "data" / "tiny"
PACK = Path(__file__).parents[1] / "eval" / "data" / "scenes"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return build_model(build_tower(seed=3), seed=3).eval()


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
    small = LanguageSettings(0.02, scene_batch=1, clip_batch=1, pool=16, clips_from=0)
    tower = model.model.vision_tower
    before = tower.embeddings.patch_embedding.weight.clone()
    beside = DenseBeside(tower, heads, garments, replace(settings, seconds=0.3))
    beside.catch_up(1.0)
    done = LanguageTrainer(model, garments, small, tmp_path, beside).train(lines.append)
    assert not torch.equal(before, tower.embeddings.patch_embedding.weight)
    later = DenseBeside(build_tower(layers=1), heads, garments, settings)
    resumed = LanguageTrainer(model, garments, small, tmp_path, later)
    assert resumed.state["step"] == done["step"] > 0
    assert later.state["step"] == beside.state["step"] > 1


def test_read_outs_can_be_fitted_to_a_tower_that_stays(garments):
    tower, heads = build_tower(layers=1), DenseHeads(128)
    before = [weight.clone() for weight in tower.parameters()]
    short = fit_heads(tower, DenseHeads(128), garments, seed=1, steps=1, batches=1)
    assert fit_heads(tower, heads, garments, seed=1, steps=30, batches=1) < short
    assert all(torch.equal(a, b) for a, b in zip(before, tower.parameters(), strict=True))


def test_the_counting_head_moves_by_a_step_for_every_item(garments):
    rng = np.random.default_rng(13)
    model = build_model(build_tower(layers=1), seed=2)
    scenes = [sample_scene(rng, garments) for _ in range(300)]
    looks = torch.randn(8, 128)
    features = looks[7].repeat(300, 196, 1)
    for row, scene in zip(features, scenes, strict=True):
        for spot, item in enumerate(scene.items):
            row[spot] = looks[item.kind]
    assert start_reading(model, features, scenes, step=0.3) < 0.01
    layer = model.model.language_model.layers[0]
    one = next(i for i, scene in enumerate(scenes) if len(scene.items) == 1)
    with torch.no_grad():
        patches = model.model.multi_modal_projector(torch.stack([features[one], features[one]]))
        patches[1, 0] = patches[0, -1]  # the item is gone
        values = layer.self_attn.v_proj(layer.input_layernorm(patches)).mean(dim=1)[:, -32:]
        moved = (values[0] - values[1]) @ layer.self_attn.o_proj.weight[:, -32:].T
    assert float(moved.norm()) == pytest.approx(0.3 * 2**0.5, rel=0.05)  # of its kind, and of all
    assert start_naming(model, features[:64], scenes[:64]) > 0.9


def test_the_least_needed_head_is_the_one_that_does_nothing(garments, model):
    rng = np.random.default_rng(14)
    scenes = [sample_scene(rng, garments) for _ in range(4)]
    features = encode(model, np.stack([render(s, garments) for s in scenes])).float()
    asked = [scene_questions(scene, rng) for scene in scenes]
    sequences = pack_questions(build_tokenizer(), asked, 1)
    columns = model.model.language_model.layers[0].self_attn.o_proj.weight
    kept = columns.detach().clone()
    with torch.no_grad():
        columns *= 20
        columns[:, 32:64] = 0
        scores, targets = answer_scores(model, sequences, features)
        base = torch.nn.functional.cross_entropy(scores, targets)
        head = least_needed_head(model, sequences, features)
        columns[:, head * 32 : head * 32 + 32] = 0
        scores, targets = answer_scores(model, sequences, features)
        columns.copy_(kept)
    assert torch.nn.functional.cross_entropy(scores, targets) <= base


def test_muon_steps_are_orthogonal_and_the_schedule_ends_at_zero():
    weight = torch.nn.Parameter(torch.zeros(8, 16))
    weight.grad = torch.randn(8, 16)
    Muon([weight], lr=1.0, weight_decay=0).step()
    singular = torch.linalg.svdvals(weight.detach())
    assert 0.5 < singular.min() / singular.max() <= 1
    assert [schedule(done) for done in (0.0, 0.3, 1.0, 2.0)] == [0, 1, 0, 0]


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
