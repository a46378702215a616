"""X-codec 2: the stock class's ids of each recording alone, with features from elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmtok.errors import InputError
from mmtok.tokenizers import HFAudio, XCodec2
from mmtok.tokenizers.methods import xcodec2


def sound(samples: int) -> Tensor:
    noise = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(samples))
    return noise + 0.3 * torch.sin(torch.arange(samples) ** 1.2 / 90)


def features(samples: Tensor) -> Tensor:
    """Kaldi's mel features by definition, float64: (1, frames / 2, 160) of whole hops (N,)."""
    x = torch.nn.functional.pad(samples.double() * 2**15, (160, 160))
    frames = x.unfold(0, 400, 160)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window = (0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(400).double() / 399)) ** 0.85
    power = torch.fft.rfft(frames * window, 512).abs().square()
    mel = 1127 * torch.log1p(torch.arange(257).double() * 16000 / 512 / 700)
    low, high = (1127 * torch.log1p(torch.tensor(hz / 700).double()) for hz in (20, 8000))
    edges = torch.linspace(float(low), float(high), 82).double()
    up = (mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
    energy = power @ torch.minimum(up, down).clamp(min=0)
    made = energy.clamp(min=torch.finfo(torch.float32).eps).log()
    made = (made - made.mean(0)) / (made.var(0) + 1e-7).sqrt()
    return made.reshape(1, -1, 160).float()


@torch.no_grad()
def test_stock_layout(tmp_path: Path) -> None:
    made = XCodec2(seed=3)
    made.network.save_pretrained(tmp_path)
    loaded = XCodec2(weights=str(tmp_path))
    assert loaded.tokenizer_hash == made.tokenizer_hash != XCodec2().tokenizer_hash
    sounds = [sound(samples) for samples in (4000, 641, 640, 16_001)]
    codes = loaded.encode(sounds, batch_size=4)
    assert codes.counts == [13, 3, 3, 51]
    for x, ids, got in zip(sounds, codes.ids, loaded.decode(codes), strict=True):
        filled = torch.nn.functional.pad(x[0], (0, 320 * len(ids) - x.shape[1]))
        want = loaded.network.encode(filled[None, None], features(filled)).audio_codes[0].T
        assert torch.equal(ids, want.long())
        again = loaded.network.decode(ids.T[None]).audio_values[0, :, : x.shape[1]]
        assert torch.allclose(got, again.clamp(-1, 1), atol=1e-5)
    assert len(codes.ids[3].unique()) > 5
    with pytest.raises(InputError, match="takes mono"):
        loaded.encode([torch.zeros(2, 40)])
    with pytest.raises(InputError, match="expected encodec"):
        HFAudio(family="encodec", weights=str(tmp_path)).encode(sounds)
    state = load_file(tmp_path / "model.safetensors")
    del state["fc_encoder.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InputError, match=r"1 weights missing or of wrong shape: fc_encoder\.weight"
    ):
        XCodec2(weights=str(tmp_path)).encode(sounds)


def test_an_older_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = dataclasses.replace(xcodec2._FACTS, name="Xcodec9")
    monkeypatch.setattr(xcodec2, "_FACTS", newer)
    with pytest.raises(InputError, match=r"transformers \S+ has no Xcodec9Config"):
        XCodec2().encode([sound(100)])


@torch.no_grad()
def test_the_stock_extractor_gives_the_same() -> None:
    pytest.importorskip("torchaudio")
    from transformers import Xcodec2FeatureExtractor

    tokenizer = XCodec2()
    for samples in (16_000, 641, 1):
        x = sound(samples)
        said = Xcodec2FeatureExtractor()([x[0].numpy()], sampling_rate=16_000, return_tensors="pt")
        want = tokenizer.network.encode(said["input_values"], said["input_features"]).audio_codes
        assert torch.equal(tokenizer.encode([x]).ids[0], want[0].T.long())
