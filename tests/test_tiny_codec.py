"""The embedded codec `tiny-codec`: it loads, keeps lengths, and was trained."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch

from mmtok.models.zoo import DATA
from mmtok.tokenizers import WavTokenizer, build
from mmtok.tokenizers.measures_audio import log_mel
from mmtok.tokenizers.wavtokenizer_net import WavTokenizerNetwork

FOLDER = DATA / "tiny-codec"
HOP = 128
LENGTHS = (1, 2, HOP - 1, HOP, HOP + 1, 3000, 8000)

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def codec() -> WavTokenizer:
    made = build("tiny-codec")
    assert isinstance(made, WavTokenizer)
    return made


def vowel(length: int, pitch: float) -> torch.Tensor:
    """Something like a voice (1, S): a pulse train through three resonances, rising and falling."""
    generator = torch.Generator().manual_seed(int(pitch))
    time = torch.arange(length) / 8000
    sound = 0.002 * torch.randn(length, generator=generator)
    for k in range(1, int(4000 / pitch)):
        loud = sum(1 / (1 + ((k * pitch - f) / 120) ** 2) for f in (600, 1200, 2500))
        sound += 0.1 * loud * torch.sin(2 * torch.pi * k * pitch * time)
    return (sound * torch.sin(torch.pi * torch.arange(length) / max(length, 2)))[None]


def test_it_is_small_and_says_what_it_is() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 3_000_000
    said = json.loads((FOLDER / "config.json").read_text())
    assert said["tokenizer"] == "wavtokenizer"
    assert codec().sample_rate == 8000
    assert codec().codebook.sizes == (1024,)
    assert (FOLDER / "MODEL_CARD.md").read_text().startswith("---\nlicense:")


def test_lengths_are_restored_and_neighbours_change_nothing() -> None:
    sounds = [vowel(length, 100 + 10 * place) for place, length in enumerate(LENGTHS)]
    codes = codec().encode(sounds)
    assert codes.counts == [-(-length // HOP) for length in LENGTHS]
    back = codec().decode(codes)
    assert [tuple(x.shape) for x in back] == [(1, length) for length in LENGTHS]
    for place, sound in enumerate(sounds):
        alone = codec().encode([sound])
        assert torch.equal(alone.ids[0], codes.ids[place])
        assert torch.equal(codec().decode(alone)[0], back[place])


def alike(got: torch.Tensor, want: torch.Tensor) -> float:
    """Correlation of ten mel bands over time."""
    spectra = [log_mel(x, 8000, mels=10).flatten() for x in (got, want)]
    return float(torch.corrcoef(torch.stack(spectra))[0, 1])


def test_voices_come_back_where_a_codec_that_never_learned_gives_noise() -> None:
    """Sounds it was not trained on; louder ones come back louder."""
    torch.manual_seed(0)
    network = WavTokenizerNetwork(codec().config).eval()
    for sound in (vowel(6000, pitch) for pitch in (110, 160, 210)):
        loud, quiet = (codec().decode(codec().encode([x]))[0] for x in (sound, 0.2 * sound))
        with torch.no_grad():
            ids = network.quantize(network.encoder(sound[None]).transpose(1, 2)).ids
            other = network.decode(network.quantize.lookup(ids))[:, : sound.shape[1]]
        assert alike(loud, sound) > 0.6
        assert alike(loud, sound) > alike(other, sound) + 0.3
        assert float(quiet.square().mean()) < 0.3 * float(loud.square().mean())
