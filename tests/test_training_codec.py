"""The recipe of the embedded codec, on a few sounds made here and a network of next to nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mmtok.errors import InputError
from mmtok.io.audio import save_audio
from mmtok.tokenizers import WavTokenizer
from mmtok.tokenizers.wavtokenizer_net import Encoder, WavTokenizerConfig
from mmtok.training import codec
from mmtok.training.codec import CodecSettings, CodecTrainer, equalise, export
from mmtok.training.digits import Digits, load_digits

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = WavTokenizerConfig(
    filters=4,
    ratios=(8, 4),
    latent=4,
    entries=16,
    layers=1,
    conditions=1,
    n_fft=128,
    sample_rate=8000,
)
SETTINGS = CodecSettings(
    steps=5, tokens=32, shortest=8, longest=12, continuous=2, start_tokens=64, lr=3e-3
)


def sound(pitch: float, length: int) -> torch.Tensor:
    """A hum (1, S) that swells and fades."""
    time = torch.arange(length) / 8000
    wave = sum(torch.sin(2 * torch.pi * k * pitch * time) / k for k in range(1, 8))
    return (0.2 * wave * torch.sin(torch.pi * torch.arange(length) / length))[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of two speakers, takes 3 to 7, one folder down."""
    made = tmp_path_factory.mktemp("recordings") / "recordings"
    made.mkdir()
    for digit in (0, 7):
        for place, speaker in enumerate(("ann", "bo_b")):
            for take in (3, 4, 5, 6, 10):
                length = 1200 + 100 * take + digit
                save_audio(
                    sound(100 + 50 * place + digit, length),
                    8000,
                    made / f"{digit}_{speaker}_{take}.wav",
                )
    (made / "notes.wav").write_bytes(b"not a recording")
    return made.parent


@pytest.fixture(scope="module")
def digits(folder: Path) -> Digits:
    return load_digits(folder, train=True)


def test_takes_below_five_are_held_out(folder: Path, digits: Digits) -> None:
    test = load_digits(folder, train=False)
    assert [x.shape[1] for x in test.sounds] == [1500, 1600] * 2 + [1507, 1607] * 2
    assert test.digits == [0] * 4 + [7] * 4
    assert test.speakers == ["ann", "ann", "bo_b", "bo_b"] * 2
    assert [x.shape[1] for x in digits.sounds[:3]] == [1700, 1800, 2200]
    with pytest.raises(InputError, match="no training recordings"):
        load_digits(folder / "nowhere", train=True)


def test_tracks_hold_every_recording_once(digits: Digits) -> None:
    for speaker, (track, starts) in zip(("ann", "bo_b"), digits.tracks(), strict=True):
        own = [
            x[0] for x, who in zip(digits.sounds, digits.speakers, strict=True) if who == speaker
        ]
        ends = [*starts[1:].tolist(), len(track)]
        parts = [track[a:b] for a, b in zip(starts.tolist(), ends, strict=True)]
        assert len(parts) == len(own)
        assert all(any(torch.equal(part, one) for one in own) for part in parts)
        assert sorted(map(len, parts)) == sorted(map(len, own))


def test_equalised_layers_are_centred_and_as_loud_as_each_other(digits: Digits) -> None:
    torch.manual_seed(0)
    encoder, sounds = Encoder(CONFIG), 0.001 * torch.randn(4, 1, 640)
    equalise(encoder, sounds)
    seen: list[torch.Tensor] = []
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv1d):
            layer.register_forward_hook(lambda _, __, made: seen.append(made))
    encoder(sounds)
    assert len(seen) == 10
    for made in seen:
        torch.testing.assert_close(made.mean((0, 2)), torch.zeros(made.shape[1]), atol=1e-4, rtol=0)
        assert float(made.detach().std()) == pytest.approx(1, abs=1e-3)


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also across the step at which the codebook starts; what the caller draws is not disturbed."""
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    whole = CodecTrainer(digits, SETTINGS, tmp_path / "whole", CONFIG).train(lambda _: None)
    assert torch.equal(torch.rand(1), drawn)
    monkeypatch.setattr(codec, "_SAVE", 1)
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise KeyboardInterrupt

    for _ in range(3):
        trainer = CodecTrainer(digits, SETTINGS, tmp_path / "parts", CONFIG)
        try:
            trainer.train(stop)
        except KeyboardInterrupt:
            continue
    assert trainer.step == SETTINGS.steps
    for name, weight in trainer.network.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name]), name
    other = replace(SETTINGS, seed=1)
    with pytest.raises(InputError, match="other settings"):
        CodecTrainer(digits, other, tmp_path / "parts", CONFIG)
    longer = replace(SETTINGS, steps=9)
    assert CodecTrainer(digits, longer, tmp_path / "parts", CONFIG).step == SETTINGS.steps
    quieter = replace(digits, sounds=[sound / 2 for sound in digits.sounds])
    with pytest.raises(InputError, match="other data"):
        CodecTrainer(quieter, SETTINGS, tmp_path / "parts", CONFIG)


def test_what_is_exported_loads_and_codes_alike(digits: Digits, tmp_path: Path) -> None:
    trainer = CodecTrainer(digits, replace(SETTINGS, steps=30), tmp_path / "run", CONFIG)
    first = trainer.train_step()["mel"]
    network = trainer.train(lambda _: None)
    assert trainer.train_step()["mel"] < 0.9 * first
    export(network.half().float().eval(), CONFIG, tmp_path / "export")
    tokenizer = WavTokenizer(weights=str(tmp_path / "export"))
    assert tokenizer.config == CONFIG
    assert tokenizer.sample_rate == 8000
    codes = tokenizer.encode(digits.sounds[:3])
    for x, ids in zip(digits.sounds, codes.ids, strict=False):
        with torch.no_grad():
            wanted = network.quantize(network.encoder(x[None]).transpose(1, 2)).ids[0]
        assert torch.equal(ids, wanted)
    sizes = [weight.dtype for weight in tokenizer.read(tokenizer.weights).values()]
    assert set(sizes) == {torch.float16, torch.bool}


def test_training_too_short_for_a_codebook_is_refused() -> None:
    with pytest.raises(InputError, match="before the codebook starts"):
        CodecSettings(steps=100)
