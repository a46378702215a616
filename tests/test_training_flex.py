"""The recipe of tiny-flex: nested dropout, its loss, resuming, and the pictures it reads."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmtok.errors import InputError
from mmtok.tokenizers import FlexTok
from mmtok.tokenizers.flextok_net import FlexTokConfig
from mmtok.tokenizers.methods.flextok import FlexTokNetwork
from mmtok.training.flex import (
    FlexSettings,
    FlexTrainer,
    draw_lengths,
    export,
    reconstruction_loss,
    start_network,
)
from mmtok.training.pictures import load_pictures
from tests.conftest import picture

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = FlexTokConfig(
    width=32,
    decoder_width=32,
    registers=8,
    side=8,
    spectrum=(16,),
    direct=True,
    lengths=(1, 3, 8),
)
PIXELS = torch.randint(
    0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def begun() -> tuple[FlexTokNetwork, Tensor]:
    """A network at its start and latents of pictures."""
    network = start_network(CONFIG, PIXELS, seed=1)
    return network, network.vae.vae.encode(PIXELS[:6].float() / 127.5 - 1)


def test_lengths_are_drawn_equally_often() -> None:
    drawn = draw_lengths(CONFIG, 3000, draw())
    assert sorted(set(drawn.tolist())) == [1, 3, 8]
    assert all(abs(int((drawn == length).sum()) - 1000) < 100 for length in (1, 3, 8))
    any_length = draw_lengths(dataclasses.replace(CONFIG, lengths=()), 300, draw())
    assert sorted(set(any_length.tolist())) == list(range(1, 9))


@pytest.mark.parametrize("one_step", [0.0, 1.0])
def test_hidden_tokens_get_no_gradient(one_step: float) -> None:
    """Nested dropout: what stands behind the first `keep` tokens changes nothing."""
    network, latent = begun()
    settings = FlexSettings(one_step=one_step, without=0.0)
    for keep in (1, 3, 8):
        network.zero_grad()
        loss = reconstruction_loss(network, latent, torch.full((6,), keep), settings, draw())
        loss.backward()
        registers = network.encoder.module_dict["enc_register_module"].registers.grad
        used = registers.abs().sum(1) > 0
        assert used.tolist() == [place < keep for place in range(8)]


def test_without_tokens_the_encoder_gets_no_gradient() -> None:
    network, latent = begun()
    settings = FlexSettings(one_step=0.0, without=1.0)
    reconstruction_loss(network, latent, torch.full((6,), 8), settings, draw()).backward()
    assert all(w.grad is None or not w.grad.any() for w in network.encoder.parameters())
    null = network.decoder.module_dict["dec_latent_dropout"].nullcond
    assert bool(null.grad.any())


@torch.no_grad()
def test_the_loss_of_one_step_is_the_error_of_what_the_tokenizer_decodes() -> None:
    network, latent = begun()
    tokenizer = FlexTok()
    tokenizer.__dict__.update(config=CONFIG, network=network.eval())
    keep = torch.tensor([1, 1, 3, 3, 8, 8])
    settings = FlexSettings(one_step=1.0)
    loss = reconstruction_loss(network, latent, keep, settings, draw())
    assert torch.equal(loss, reconstruction_loss(network, latent, keep, settings, draw(5)))
    smooth = list((network.vae.vae.decode(latent) + 1) / 2)
    errors = []
    for item, count in zip(smooth, keep.tolist(), strict=True):
        ids = network.quantize(network.encoder(network.vae.vae.encode(2 * item[None] - 1))).ids
        made = tokenizer.decode_batch(ids[:, :count], (3, 16, 16))[0]
        errors.append((made.double() - item.double()).square())
    # Twice as large a range, and four pixels to each frequency that is kept.
    want = torch.stack(errors).mean() * 4 * 4
    assert float(loss) == pytest.approx(float(want), rel=1e-4)


def test_a_run_in_two_parts_is_the_run_in_one(tmp_path: Path) -> None:
    settings = FlexSettings(steps=6, batch=8)
    whole = FlexTrainer(CONFIG, PIXELS, settings, tmp_path / "whole")
    whole.train()
    FlexTrainer(CONFIG, PIXELS, settings, tmp_path / "parts").train(until=4)
    second = FlexTrainer(CONFIG, PIXELS, settings, tmp_path / "parts")
    assert second.state["step"] == 4
    assert second.train()["step"] == 6
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, second.network.state_dict()[name]), name
    for other in (dataclasses.replace(settings, nested=False), FlexSettings(steps=9, batch=8)):
        with pytest.raises(InputError, match="made with other settings"):
            FlexTrainer(CONFIG, PIXELS, other, tmp_path / "parts")
    with pytest.raises(InputError, match="or other data"):
        FlexTrainer(CONFIG, PIXELS[:39], settings, tmp_path / "parts")


def test_training_learns_and_exports(tmp_path: Path) -> None:
    """A few pictures by heart, all by their first token alone, from an exported folder."""
    flat = torch.rand(4, 3, 1, 1, generator=draw()).expand(4, 3, 16, 16)
    pixels = (flat * 255).to(torch.uint8)
    config = dataclasses.replace(CONFIG, lengths=(1, 8), depth=1, decoder_depth=1)
    settings = FlexSettings(steps=120, batch=16, lr=1e-2, others_lr=1e-2)
    trainer = FlexTrainer(config, pixels, settings, tmp_path)
    trained = trainer.train(lambda line: None)
    export(trainer.network, config, tmp_path / "export", trained)
    tokenizer = FlexTok(weights=str(tmp_path / "export"))
    assert tokenizer.config == config
    pictures = list(pixels.float() / 255)
    codes = tokenizer.encode(pictures, max_tokens=1)
    error = torch.stack(tokenizer.decode(codes)) - torch.stack(pictures)
    spread = torch.stack(pictures) - torch.stack(pictures).mean(0)
    assert float(error.square().mean()) < 0.2 * float(spread.square().mean())
    said = json.loads((tmp_path / "export" / "config.json").read_text())
    assert (said["tokenizer"], said["trained"]["step"]) == ("flextok", 120)


def test_pictures_of_a_folder_and_of_a_tar_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "some" / "below"
    folder.mkdir(parents=True)
    for seed, size in enumerate([(20, 30), (16, 16), (9, 8)]):
        picture(seed, *size).save(folder / f"{seed}.png")
    (folder / "notes.txt").write_text("no picture")
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(tmp_path / "some", arcname="some")
    found = load_pictures(tmp_path / "some", 16)
    assert found.shape == (3, 3, 16, 16)
    assert torch.equal(found, load_pictures(tmp_path / "all.tar", 16))
    exact = torch.from_numpy(np.array(picture(1, 16, 16)))
    assert torch.equal(found[1], exact.permute(2, 0, 1))


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_what_is_no_picture_is_refused_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="picture"):
        load_pictures(tmp_path, 16)
    cut = io.BytesIO()
    Image.new("RGB", (8, 8)).save(cut, "png")
    (tmp_path / "a.png").write_bytes(cut.getvalue()[:40])
    with pytest.raises(InputError, match=r"a\.png"):
        load_pictures(tmp_path, 16)
    with pytest.raises(InputError, match="expected a folder or"):
        load_pictures(tmp_path / "a.png", 16)
