"""The recipes of tiny-vq, tiny-ar, its drafter and the judge: they resume, export and load."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from mmtok.codes import Codes
from mmtok.errors import InputError
from mmtok.eval.judge import load_judge, saved_judge
from mmtok.tokenizers import build
from mmtok.training import checkpoint
from mmtok.training.ar import (
    TOKENS,
    VOCABULARY,
    ARSettings,
    ARTrainer,
    build_model,
    codes_of,
    export,
    held_out,
    sequences,
)
from mmtok.training.draft import DraftSettings, DraftTrainer, agreement, draw_guided
from mmtok.training.judge import train as train_judge
from mmtok.training.vq import BORDER, VQSettings, VQTrainer, as_pictures, measure

pytestmark = pytest.mark.usefixtures("one_thread")


def silent(line: str) -> None:
    """Say nothing."""


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def some_sequences(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(VOCABULARY.codes, (count, TOKENS), generator=generator)
    return sequences(codes, torch.arange(count) % 10)


def test_an_epoch_takes_every_item_once_in_an_order_of_its_own():
    epochs = [torch.cat([checkpoint.batch_at(s, 3, 9, 1) for s in range(e, e + 3)]) for e in (0, 3)]
    assert all(sorted(epoch.tolist()) == list(range(9)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(checkpoint.batch_at(2, 3, 9, 1), epochs[0][6:])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"warm": 1.0}, "warm must be at least 0 and below 1"),
        ({"warm": -0.1}, "warm must be"),
        ({"warm": float("nan")}, "warm must be"),
        ({"batch": 0}, "steps of 0"),
        ({"steps": 0}, "0 steps"),
    ],
)
def test_settings_that_give_no_codes_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        VQSettings(**change)


def test_a_batch_is_no_larger_than_the_data():
    assert len(checkpoint.batch_at(0, 9, 9, 1)) == 9
    for batch in (0, 10):
        with pytest.raises(InputError, match=f"batch of {batch}, expected 1 to 9"):
            checkpoint.batch_at(0, batch, 9, 1)
    for batch in (0, 641):
        with pytest.raises(InputError, match=f"batch of {batch}, expected 1 to 640"):
            DraftSettings(batch=batch)


def test_the_tokenizer_resumes_to_the_same_weights_and_exports(garments, tmp_path):
    settings = VQSettings(steps=6, batch=4, warm=0.34)
    images = garments.images[:16]
    whole = VQTrainer(images, settings, tmp_path / "whole")
    whole.train(silent)
    VQTrainer(images, settings, tmp_path / "parts").train(silent, until=3)
    with pytest.raises(InputError, match="made with other settings"):
        VQTrainer(images, replace(settings, lr=1.0), tmp_path / "parts")
    with pytest.raises(InputError, match="or other data"):
        VQTrainer(images[1:], settings, tmp_path / "parts")
    later = VQTrainer(images, settings, tmp_path / "parts")
    assert later.step == 3
    later.train(silent)
    assert_same(later.network, whole.network)
    assert_same(later.book, whole.book)
    later.export(tmp_path / "export")
    assert {w.dtype for w in load_file(tmp_path / "export" / "model.safetensors").values()} == {
        torch.float16
    }
    figures = measure(tmp_path / "export", images)
    assert 0 < figures["used"] <= 1
    assert figures["psnr"] > 3


def test_psnr_and_ids_are_those_of_the_training_network(garments, tmp_path):
    trainer = VQTrainer(garments.images[:16], VQSettings(steps=2, batch=8, warm=0), tmp_path)
    trainer.train(silent)
    trainer.export(tmp_path / "export")
    pictures = as_pictures(garments.images[:4])
    assert float(pictures[..., :BORDER].sum()) == 0
    tokenizer = build(f"hf_vq(weights={str(tmp_path / 'export')!r})")
    codes: Codes = tokenizer.encode(list(pictures))
    with torch.no_grad():
        network = trainer.network.half().float().eval()
        latents = network.quant_conv(network.encoder(pictures * 2 - 1)).flatten(2).transpose(1, 2)
        found = trainer.book.eval()(latents)
    assert (found.ids == torch.stack(codes.ids)).float().mean() > 0.97  # entries are in fp16 there


def test_the_model_resumes_to_the_same_weights_and_plain_transformers_loads_it(tmp_path):
    settings, data = ARSettings(steps=4, batch=4), some_sequences(12)

    def trainer(folder: str) -> ARTrainer:
        model = build_model(width=32, layers=1, tied=False, seed=1)
        return ARTrainer(model, data.clone(), settings, tmp_path / folder)

    whole = trainer("whole")
    whole.train(silent)
    trainer("parts").train(silent, until=2)
    later = trainer("parts")
    assert later.step == 2
    later.train(silent)
    assert_same(later.model, whole.model)
    with pytest.raises(InputError, match="made with other settings"):
        ARTrainer(later.model, data, replace(settings, hide=0), tmp_path / "parts")
    with pytest.raises(InputError, match="or other data"):
        ARTrainer(later.model, data.flip(0), settings, tmp_path / "parts")
    assert torch.equal(later.data, data)  # hiding a class leaves the data as they are
    export(later.model, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    half = later.model.half().float()
    torch.testing.assert_close(loaded(data).logits, half(data).logits, atol=1e-5, rtol=1e-5)
    figures = held_out(half, data)
    assert figures["bits_a_picture"] == pytest.approx(figures["nats"] * TOKENS / 0.693147, rel=1e-4)


def test_codes_are_computed_once(garments, tmp_path):
    first = codes_of(garments.images[:3], tmp_path / "codes.pt")
    assert first.shape == (3, TOKENS)
    assert torch.equal(codes_of(None, tmp_path / "codes.pt"), first)


def test_guided_draws_are_the_target_s_and_teach_the_drafter(tmp_path):
    target = build_model(width=32, layers=2, tied=False, seed=2).eval()
    with torch.no_grad():
        for weight in target.parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)  # far from uniform
    classes = torch.tensor([3, 7, 7])
    ids, law = draw_guided(target, classes, 2.0, torch.Generator().manual_seed(0))
    assert torch.equal(ids[:, 0], classes + VOCABULARY.first_class)
    assert int(ids[:, 1:].max()) < VOCABULARY.codes
    other = ids.clone()
    other[:, 0] = VOCABULARY.unconditional
    with torch.no_grad():
        cond, uncond = (target(x[:, :-1]).logits[..., : VOCABULARY.codes] for x in (ids, other))
    want = (2 * cond - uncond).log_softmax(-1)
    got = law[..., : VOCABULARY.codes]
    assert float(kl_div(got, want, log_target=True, reduction="none").sum(-1).max()) < 0.02  # bf16
    settings = DraftSettings(rounds=2, pictures=20, passes=8, batch=10)
    trainer = DraftTrainer(target, settings, tmp_path / "whole")
    before = agreement(trainer.model, ids, law)
    trainer.train(silent)
    after = agreement(trainer.model, ids, law)
    assert after[0] < before[0]
    assert after[1] > before[1]
    DraftTrainer(target, settings, tmp_path / "parts").train(silent, until=1)
    later = DraftTrainer(target, settings, tmp_path / "parts")
    assert later.round == 1
    later.train(silent)
    assert_same(later.model, trainer.model)
    with pytest.raises(InputError, match="made with other settings"):
        DraftTrainer(target, replace(settings, guidance=1), tmp_path / "parts")
    with pytest.raises(InputError, match="or other data"):
        DraftTrainer(trainer.model, settings, tmp_path / "parts")


def test_the_judge_resumes_and_its_moments_are_kept(garments, tmp_path):
    images = torch.tensor(garments.images).repeat(20, 1, 1)[:256]
    classes = torch.arange(256) % 10
    whole = train_judge(images, classes, tmp_path / "whole", epochs=2)
    saved = tmp_path / "parts"
    train_judge(images, classes, saved, epochs=2)
    again = train_judge(images, classes, saved, epochs=2)  # nothing is left to do
    assert_same(again, whole)
    with pytest.raises(InputError, match="made with other settings"):
        train_judge(images, classes, saved, epochs=3)
    with pytest.raises(InputError, match="or other data"):
        train_judge(images, classes.flip(0), saved, epochs=2)
    from safetensors.torch import save_file

    photographs = as_pictures(images[:64])
    save_file(dict(saved_judge(whole, photographs)), tmp_path / "model.safetensors")
    judge = load_judge(tmp_path)
    same, dark = (judge.figures(photographs * x, classes[:64])["frechet"] for x in (1.0, 0.3))
    assert 20 * same < dark


def test_the_judge_has_a_feature_and_a_class_for_every_picture():
    judge = load_judge()
    features, classes = judge.read(torch.rand(3, 3, 32, 32))
    assert features.shape == (3, len(judge.mean))
    assert classes.shape == (3,)
    assert torch.equal(judge.covariance, judge.covariance.T)
