"""`tiny-vq`, `tiny-ar` and `mmtok generate`: what ships works, is exact, and refuses bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from mmtok.cli.app import main
from mmtok.errors import InputError
from mmtok.eval.judge import load_judge
from mmtok.models.visual_ar import Vocabulary, load_causal, load_visual_ar
from mmtok.models.zoo import DATA, embedded_generators, embedded_names
from mmtok.tokenizers import build
from mmtok.training.garments import CLASSES

pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = ("tiny-vq", "tiny-ar", "tiny-ar-draft")
GUIDANCE = 1.5


@pytest.fixture(scope="module")
def painter():
    return load_visual_ar("tiny-ar")


def size(name: str) -> int:
    return sum(path.stat().st_size for path in (DATA / name).iterdir())


def weights(name: str) -> int:
    return sum(w.numel() for w in load_file(DATA / name / "model.safetensors").values())


def test_what_ships_is_small_and_in_half_precision():
    assert size("tiny-vq") <= 2 * 2**20
    assert size("tiny-ar") + size("tiny-ar-draft") <= 12 * 2**20
    assert weights("tiny-ar") >= 4 * weights("tiny-ar-draft")
    for name in SHIPPED:
        state = load_file(DATA / name / "model.safetensors")
        assert {w.dtype for w in state.values()} == {torch.float16}
        assert (DATA / name / "MODEL_CARD.md").is_file()
    assert embedded_generators() == ("tiny-ar",)
    assert "tiny-ar" not in embedded_names()


def test_plain_transformers_loads_target_and_drafter():
    for name in ("tiny-ar", "tiny-ar-draft"):
        model = AutoModelForCausalLM.from_pretrained(DATA / name, dtype=torch.float32)
        assert type(model) is LlamaForCausalLM
        ours = load_causal(name)
        ids = torch.tensor([[515, 1, 2, 3]])
        assert torch.equal(model(ids).logits, ours(ids).logits)


def test_one_picture_has_no_distance_from_photographs():
    with pytest.raises(InputError, match="needs at least 2 pictures, got 1"):
        load_judge().figures(torch.rand(1, 3, 32, 32), torch.zeros(1))


def test_pictures_show_their_class_and_the_tokenizer_keeps_them(painter):
    kinds = [*CLASSES] * 3
    made = painter.generate(kinds, painter.drafter("draftmodel"), guidance=GUIDANCE)
    pictures = painter.pictures(made.sequences)
    assert pictures.shape == (30, 3, 32, 32)
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    wanted = torch.arange(30) % 10
    _, seen = load_judge().read(pictures)
    assert float((seen == wanted).float().mean()) >= 0.6
    tokenizer = build("tiny-vq")
    codes = tokenizer.encode(list(pictures))
    assert codes.counts == [64] * 30
    again = torch.stack(tokenizer.decode(codes))
    assert -10 * float((again - pictures).square().mean().log10()) > 22


@pytest.mark.parametrize(
    "spec", ["draftmodel(tokens=5, temperature=0)", "rsdc", "jacobi(window=6)", "recycling"]
)
def test_greedy_pictures_are_plain_generate_s(painter, spec):
    prompts, negative = painter.prompts(["sneaker"])
    plain = painter.model.generate(
        **prompts,
        attention_mask=torch.ones_like(prompts["input_ids"]),
        do_sample=False,
        guidance_scale=GUIDANCE,
        negative_prompt_ids=negative["input_ids"],
        max_new_tokens=painter.tokens,
    )
    kinds, drafts = ["bag", "sneaker"], painter.drafter(spec)
    made = painter.generate(kinds, drafts, guidance=GUIDANCE, temperature=0)
    assert torch.equal(made.sequences[1], plain[0])
    assert made.stats.target_forwards < painter.tokens


@pytest.mark.parametrize("spec", ["lantern(delta=0.2)", "gsd", "typical"])
def test_lossy_verifiers_get_what_they_need_and_measure_the_damage(painter, spec):
    rule = painter.verifier(spec)
    made = painter.generate(["dress"], painter.drafter("draftmodel"), rule, guidance=GUIDANCE)
    assert not made.stats.lossless
    assert 0 < made.stats.mean_tv < 1
    assert int(made.sequences[:, 1:].max()) < painter.vocabulary.codes


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = main(["generate", *arguments, "--json"])
    done = capsys.readouterr()
    lines = done.out.strip().splitlines()
    assert "Traceback" not in done.err
    return code, json.loads(lines[-1]) if lines else None, done.err


def test_the_command_writes_a_grid_and_the_acceptance_table(tmp_path: Path, capsys):
    out = tmp_path / "grid.png"
    arguments = ["--class", "boot", "--count", "3", "--out", str(out), "--scale", "2"]
    code, said, shown = run(capsys, *arguments, "--drafter", "draftmodel(tokens=3)")
    assert code == 0
    with Image.open(out) as sheet:
        assert sheet.size == (128, 128)
        assert sheet.convert("L").getextrema()[1] > 100
    assert said["images"] == [str(out)]
    (row,) = said["rows"]
    assert row["drafter"] == "draftmodel(tokens=3)"
    assert row["lossless"]
    assert row["tv"] is None
    assert 0 < row["accepted_per_forward"] <= 3
    assert 64 / 4 <= row["target_forwards"] < 64
    assert row["ms"] > 0
    assert "accepted a forward" in shown
    assert "depth  1" in shown
    first = out.read_bytes()
    assert run(capsys, *arguments)[0] == 2  # it exists
    same = run(capsys, *arguments, "--overwrite", "--drafter", "draftmodel(tokens=3)")
    assert same[0] == 0
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--class", "hat"], "hat"),
        (["--count", "0"], "--count"),
        (["--scale", "0"], "--scale"),
        (["--guidance", "nan"], "--guidance"),
        (["--temperature", "-1"], "--temperature"),
        (["--seed", "-1"], "--seed"),
        (["--drafter", "nothing"], "nothing"),
        (["--drafter", "draftmodel(tokens=0)"], "tokens"),
        (["--drafter", "rsdc", "--verifier", "chain"], "wrong for drafts"),
        (["--verifier", "greedy"], "do_sample"),
        (["--verifier", "lantern(delta=-1)"], "delta"),
        (["--model", "nowhere"], "nowhere"),
        (["--model", str(DATA / "tiny-ar-draft"), "--draft-model", "nowhere"], "nowhere"),
        (["--model", str(DATA / "tiny-vq")], "tiny-vq"),
        (["--out", "grid.txt"], "grid.txt"),
        (["--out", "no/such/folder/grid.png"], "no/such/folder"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys, arguments, named):
    usual = ["--class", "boot", "--count", "1", "--out", str(tmp_path / "grid.png")]
    code, said, shown = run(capsys, *usual, *arguments)
    assert (code, said) == (2, None)
    assert named in shown
    assert len(shown.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "spec", "argument"),
    [
        ("verifier", "lantern(near=3)", "near"),
        ("verifier", "gsd(codebook=None)", "codebook"),
        ("drafter", "draftmodel(model='tiny')", "model"),
    ],
)
def test_what_is_filled_in_cannot_be_given(painter, kind, spec, argument):
    with pytest.raises(InputError, match=f"{argument} is filled in, leave it out"):
        getattr(painter, kind)(spec)


def test_the_shipped_draft_model_goes_where_the_target_is(painter):
    elsewhere = replace(painter, model=SimpleNamespace(device=torch.device("meta")))
    assert elsewhere.drafter("draftmodel").model.device.type == "meta"
    assert painter.drafter("draftmodel").model.device == painter.model.device


def test_a_configuration_that_says_nothing_of_its_tokens_is_refused():
    for said in (None, 3, {}, {"tokenizer": "tiny-vq"}):
        with pytest.raises(InputError, match="visual"):
            Vocabulary.read(said, "there")
    good = json.loads((DATA / "tiny-ar" / "config.json").read_text())["visual"]
    assert Vocabulary.read(good, "here").classes == CLASSES
    for name, value in {"codes": "x", "shape": [3, 32], "classes": [], "tokenizer": 1}.items():
        with pytest.raises(InputError, match="visual"):
            Vocabulary.read({**good, name: value}, "there")
