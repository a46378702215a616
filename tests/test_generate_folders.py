"""Model folders that are broken or lie: one line says so, and no random weights are used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtok.cli.app import main
from mmtok.errors import InputError
from mmtok.models.causal import load_causal
from mmtok.models.visual_ar import load_visual_ar
from mmtok.models.zoo import DATA

pytestmark = pytest.mark.usefixtures("one_thread")

SAID = json.loads((DATA / "tiny-ar" / "config.json").read_text())
DRAFT = "tiny-ar-draft"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "tiny-ar", tmp_path / "model"))


def config(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps(SAID | values))


def visual(folder: Path, **values: Any) -> None:
    config(folder, visual=SAID["visual"] | values)


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(128)}, folder / "pytorch_model.bin")


def renamed(state: dict[str, torch.Tensor]) -> None:
    state["model.norm.wait"] = state.pop("model.norm.weight")


def turned(state: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    state[name] = state[name].T.contiguous()


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


HUGE = 10**12
BROKEN: list[tuple[Callable[[Path], Any], str]] = [
    (cut, "no safetensors file"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "no safetensors file"),
    (lambda f: (f / "model.safetensors").unlink(), "no .safetensors weights"),
    (lambda f: pipe(f / "model.safetensors"), "model.safetensors: is not a regular file"),
    (lambda f: pipe(f / "generation_config.json"), "config.json: is not a regular file"),
    (lambda f: pipe(f / "model.safetensors.index.json"), "index.json: is not a regular file"),
    (pickled, "no .safetensors weights"),
    (lambda f: weights(f, lambda s: s.pop("model.norm.weight")), "describes 1339776 parameters"),
    (lambda f: weights(f, renamed), "1 missing, such as model.norm.weight"),
    (lambda f: weights(f, lambda s: s.update(x=torch.ones(1))), "1 unexpected, such as x"),
    (lambda f: weights(f, turned), "1 mismatched, such as model.layers.0.mlp.down_proj.weight"),
    (lambda f: config(f, num_hidden_layers=5), "9 unexpected"),
    (lambda f: config(f, vocab_size=520), "2 mismatched"),
    (lambda f: config(f, vocab_size=524), "describes 1340032 parameters"),
    (lambda f: config(f, model_type="gpt2"), "missing"),
    (lambda f: config(f, model_type="clip"), "cannot be read as a causal language model"),
    (lambda f: config(f, num_attention_heads=0), "cannot be read as a causal language model"),
    (lambda f: config(f, hidden_size="x"), "hidden_size"),
    (lambda f: config(f, auto_map={"AutoConfig": "a.B"}, model_type="odd"), "custom code"),
    (lambda f: config(f, attn_implementation="some/kernel"), "attn_implementation"),
    (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    (lambda f: (f / "config.json").write_text(""), "is empty"),
    (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
    (lambda f: (f / "config.json").write_text(" " * 2**23), "is larger than"),
    (lambda f: config(f, vocab_size=HUGE), "vocab_size is 1000000000000"),
    (lambda f: config(f, vocab_size=2**24), "describes 4296173184 parameters"),
    (lambda f: config(f, hidden_size=float("inf")), "hidden_size is inf"),
    (lambda f: config(f, num_hidden_layers=HUGE), "num_hidden_layers is 1000000000000"),
    (lambda f: config(f, num_hidden_layers=1000), "has 1000 layers, the weights are 57"),
    (lambda f: config(f, num_labels=HUGE), "num_labels is 1000000000000"),
    (lambda f: config(f, head_dim=10**7), "parameters, the weights hold 1339776"),
]


@pytest.mark.parametrize(("spoil", "said"), BROKEN)
def test_a_folder_that_cannot_be_trusted_is_refused(
    folder: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(folder)
    with pytest.raises(InputError) as caught:
        load_causal(str(folder))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"first_class": 520}, "does not fit the model's 523 tokens"),
        ({"first_class": 500}, "does not fit"),
        ({"first_code": 20}, "does not fit"),
        ({"unconditional": 523}, "does not fit"),
        ({"unconditional": 512}, "does not fit"),
        ({"codes": 0}, "does not fit"),
        ({"classes": ["bag", "bag"]}, "does not fit"),
        ({"first_class": -1}, "cannot be read"),
        ({"first_class": 512.0}, "cannot be read"),
        ({"first_class": True}, "cannot be read"),
        ({"unconditional": "522"}, "cannot be read"),
        ({"codes": None}, "cannot be read"),
        ({"classes": "bag"}, "cannot be read"),
        ({"draft": 3}, "cannot be read"),
        ({"shape": [3, 32]}, "cannot be read"),
        ({"shape": [1, 32, 32]}, "shape of 'visual' must be"),
        ({"shape": [3, 0, 32]}, "shape of 'visual' must be"),
        ({"shape": [3, 2**19, 32]}, "shape of 'visual' must be"),
        ({"shape": [3, 64, 64]}, "is 256 codes behind its class, the model has 65 positions"),
        ({"codes": 511}, "tiny-vq has a codebook of 512"),
        ({"tokenizer": "nothing"}, "unknown tokenizer 'nothing'"),
    ],
)
def test_what_token_ids_mean_is_held_against_the_model(
    folder: Path, values: dict[str, Any], said: str
) -> None:
    visual(folder, **values)
    with pytest.raises(InputError) as caught:
        load_visual_ar(str(folder))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_what_it_says_is_read(folder: Path) -> None:
    ours, shipped = load_causal(str(folder)).state_dict(), load_causal("tiny-ar").state_dict()
    assert all(torch.equal(ours[name], shipped[name]) for name in shipped)
    config(folder, tie_word_embeddings=True)
    weights(folder, lambda state: state.pop("lm_head.weight"))
    tied = load_causal(str(folder))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_the_command_says_it_in_one_line(tmp_path: Path, folder: Path, capsys: Any) -> None:
    out, spoilt = tmp_path / "grid.png", tmp_path / "draft"
    shutil.copytree(DATA / DRAFT, spoilt)
    cut(spoilt)
    usual = ["generate", "--class", "boot", "--count", "1", "--out", str(out)]

    def refused(*more: str) -> str:
        assert main([*usual, *more]) == 2
        said: str = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        assert not out.exists()
        return said

    assert "no safetensors file" in refused("--draft-model", str(spoilt))
    visual(folder, draft=str(spoilt))
    assert "no safetensors file" in refused("--model", str(folder))
    visual(folder, draft="nowhere")
    assert "nowhere: no model" in refused("--model", str(folder))
    for made in ('{"num_beams": 4}', '{"top_k": "x"}', "[]"):
        (folder / "generation_config.json").write_text(made)
        refused("--model", str(folder), "--drafter", "lookup")


def test_a_draft_model_is_found_from_the_folder_that_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DATA / DRAFT, folder / "small" / "draft")
    monkeypatch.chdir(folder / "small")  # from where the path of the draft leads nowhere
    for draft, name in (("small/draft", str(folder)), ("small/draft", ".."), (DRAFT, "..")):
        visual(folder, draft=draft)
        drafter: Any = load_visual_ar(name).drafter("draftmodel")
        assert drafter.model.num_parameters() == load_causal(DRAFT).num_parameters()


def test_an_end_of_sequence_in_a_folder_does_not_cut_pictures(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 1, 2], "top_k": 0}')
    made = [
        painter.generate(["bag"] * 3, painter.drafter("lookup"))
        for painter in (load_visual_ar(name) for name in (str(folder), "tiny-ar"))
    ]
    assert (made[1].sequences < 3).any()
    assert torch.equal(made[0].sequences, made[1].sequences)


def test_what_ends_text_early_does_not_end_pictures(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"max_time": 0.0, "top_k": 0}')
    painter = load_visual_ar(str(folder))
    made = painter.generate(["bag"], painter.drafter("lookup"))
    assert made.sequences.shape == (1, 65)
    given: list[dict[str, Any]] = [{"max_time": 1.0}, {"stopping_criteria": [bool]}]
    for options in given:
        with pytest.raises(InputError, match=f"has no use for {next(iter(options))}"):
            painter.generate(["bag"], painter.drafter("lookup"), **options)
    for wrong in (made.sequences[:, :2], made.sequences[0]):
        with pytest.raises(InputError, match=r"sequences must be \(B, 65\)"):
            painter.pictures(wrong)


def test_only_codes_are_written_by_whatever_weights() -> None:
    painter = load_visual_ar("tiny-ar")
    with torch.no_grad():
        painter.model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    for temperature in (0.0, 100.0):
        made = painter.generate(["bag"], painter.drafter("lookup"), temperature=temperature)
        assert int(made.sequences[:, 1:].max()) < painter.vocabulary.codes
        assert painter.pictures(made.sequences).isfinite().all()
