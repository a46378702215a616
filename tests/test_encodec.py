"""EnCodec's 48 kHz model: chunks and loudness, exactly those of the stock class, held by codes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtok.errors import InputError
from mmtok.io.mmt import read_codes, write_codes
from mmtok.tokenizers import HFAudio

CHUNK, STRIDE, HOP = 400, 380, 8
CHUNKED = {
    "num_filters": 4,
    "hidden_size": 16,
    "upsampling_ratios": [4, 2],
    "num_lstm_layers": 1,
    "codebook_size": 64,
    "sampling_rate": 4000,
    "target_bandwidths": [6.0, 24.0],  # 2 and 8 codebooks of 6 bits at 500 tokens a second
    "audio_channels": 2,
    "normalize": True,
    "chunk_length_s": 0.1,
    "overlap": 0.05,
    "norm_type": "time_group_norm",
    "use_causal_conv": False,
}
LENGTHS = (1, 7, 399, 400, 401, 1000, 761, 385)
STOCK_FAILS = (761, 385)  # the last but one chunk is short; the last one ends within it


def sound(samples: int, scale: float = 0.3) -> Tensor:
    draw = torch.Generator().manual_seed(samples)
    return scale * torch.randn(2, samples, generator=draw).cumsum(1).sin()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    made = EncodecModel(EncodecConfig(**CHUNKED)).eval()
    with torch.no_grad():
        latents = made.encoder(sound(400)[None] / 0.2)[0].T
        for layer in made.quantizer.layers:
            layer.codebook.embed.copy_(latents.repeat(2, 1)[:64] + torch.randn(64, 16))
    path = tmp_path_factory.mktemp("encodec")
    made.save_pretrained(path)
    return path


def loaded(folder: Path, codebooks: int | None = None) -> tuple[HFAudio, Any]:
    tokenizer = HFAudio(family="encodec", weights=str(folder), codebooks=codebooks)
    return tokenizer, tokenizer.network


@pytest.mark.parametrize(("codebooks", "bandwidth", "quiet"), [(None, 24.0, 1), (2, 6.0, 3)])
@torch.no_grad()
def test_ids_and_samples_are_the_stock_class(
    folder: Path, codebooks: int | None, bandwidth: float, quiet: int, tmp_path: Path
) -> None:
    tokenizer, stock = loaded(folder, codebooks)
    assert (tokenizer.sample_rate, tokenizer.channels) == (4000, 2)
    sounds = [sound(samples, 0.1 + 0.2 * i) for i, samples in enumerate(LENGTHS)]
    codes = tokenizer.encode(sounds)
    write_codes(codes, tmp_path / "codes.mmt")
    made = tokenizer.decode(read_codes(tmp_path / "codes.mmt"))
    for x, ids, got in zip(sounds, codes.ids, made, strict=True):
        starts = range(0, x.shape[1], STRIDE)
        want = [stock._encode_frame(x[None, :, s : s + CHUNK], bandwidth)[0][0].T for s in starts]
        split = ids.split([quiet + len(part) for part in want])
        assert all(torch.equal(a[quiet:], b) for a, b in zip(split, want, strict=True))
        assert got.shape == x.shape
        assert float(got.abs().max()) > 1e-3
        if x.shape[1] in STOCK_FAILS:
            with pytest.raises(RuntimeError):
                stock.forward(x[None], bandwidth=bandwidth)
        else:
            again = stock.forward(x[None], bandwidth=bandwidth).audio_values[0]
            assert torch.allclose(got, again.clamp(-1, 1)[:, : x.shape[1]], atol=1e-5)
    soft, softer = (tokenizer.decode(tokenizer.encode([sound(1000, s)]))[0] for s in (0.01, 0.005))
    assert float(softer.norm() / soft.norm()) == pytest.approx(0.5, rel=0.05)


def test_batches_and_beginnings(folder: Path) -> None:
    tokenizer, _ = loaded(folder)
    sounds = [sound(1000), sound(500), sound(1000)]
    codes = tokenizer.encode(sounds, batch_size=3)
    for place, x in enumerate(sounds):
        assert torch.equal(tokenizer.encode([x]).ids[0], codes.ids[place])
    whole = tokenizer.decode(codes)[0]
    for k in (1, 2, 51, 52, 53, 60):  # a loudness alone, the first chunk, and into the second
        part = tokenizer.decode(tokenizer.trim(codes, k))[0]
        assert part.shape == (2, 1000)
        reach = 0 if k == 1 else STRIDE if k > 52 else min(k - 1, 50) * HOP
        assert bool((part[:, reach + CHUNK :] == 0).all())
        if k > 51:
            assert torch.allclose(part[:, :300], whole[:, :300], atol=1e-5)


def test_ids_that_spell_no_loudness(folder: Path) -> None:
    """Whatever the ids are, what comes out are finite samples."""
    tokenizer, _ = loaded(folder, 2)
    codes = tokenizer.encode([sound(900)])
    for value in (0, 63):
        ids = codes.ids[0].clone()
        ids[:3] = value
        got = tokenizer.decode(dataclasses.replace(codes, ids=[ids]))[0]
        assert bool(torch.isfinite(got).all())
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        ids = torch.randint(64, codes.ids[0].shape, generator=draw)
        got = tokenizer.decode(dataclasses.replace(codes, ids=[ids]))[0]
        assert float(got.abs().max()) <= 1


def test_what_is_no_such_model(folder: Path, tmp_path: Path) -> None:
    tokenizer, stock = loaded(folder)
    with pytest.raises(InputError, match=r"takes 2 channels, got shape \(1, 50\)"):
        tokenizer.encode([torch.zeros(1, 50)])
    stock.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    for change in ({"chunk_length_s": 0}, {"overlap": 1.0}, {"overlap": None}, {"overlap": -1}):
        (tmp_path / "config.json").write_text(json.dumps(said | change))
        with pytest.raises(InputError, match=r"expected some samples|no configuration"):
            HFAudio(family="encodec", weights=str(tmp_path)).encode([sound(50)])
