"""FlexTok's spectrum, one-step decoding and quality target; the model that ships."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from torch import Tensor

from mmtok.errors import InputError
from mmtok.io.mmt import read_codes, write_codes
from mmtok.tokenizers import FlexTok, build
from mmtok.tokenizers.flextok_net import FlexTokConfig
from mmtok.tokenizers.flow import sample, towards
from mmtok.tokenizers.spectrum import Spectrum

SMALL = FlexTokConfig(
    width=32, decoder_width=32, depth=1, decoder_depth=1, registers=8, side=8, spectrum=(16,)
)


@cache
def photographs() -> list[Tensor]:
    """Details of photographs that no model here was trained on, 32 pixels a side."""
    found = []
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        whole = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1).float() / 255
        for left in (0, 100, 200):
            detail = whole[None, :, 60:260, left : left + 200]
            found.append(F.interpolate(detail, (32, 32), mode="bilinear", antialias=True)[0])
    return found


def decibels(made: Tensor, want: Tensor) -> float:
    return float(-10 * (made.double() - want.double()).square().mean().log10())


def direct(config: FlexTokConfig, **settings: object) -> FlexTok:
    """A random model that decodes in one step."""
    made = FlexTok(**settings)
    made.__dict__["config"] = dataclasses.replace(config, direct=True)
    return made


def test_every_length_of_the_one_that_ships_adds_to_the_picture() -> None:
    tokenizer = build("tiny-flex")
    assert isinstance(tokenizer, FlexTok)
    codes = tokenizer.encode(photographs(), batch_size=12)
    assert tokenizer.lengths[-1] == tokenizer.max_tokens == 32
    got = []
    for length in tokenizer.lengths:
        made = tokenizer.decode(codes.trim(length), batch_size=12)
        got.append(np.mean([decibels(a, b) for a, b in zip(made, photographs(), strict=True)]))
    assert all(b > a for a, b in pairwise(got)), got
    assert got[-1] > got[0] + 4
    average = torch.stack(photographs()).mean(0)
    assert got[0] > np.mean([decibels(average, p) for p in photographs()]) + 2


def test_quality_spends_the_fewest_tokens_that_reach_it(tmp_path: Path) -> None:
    plain = FlexTok(weights="tiny-flex")
    whole = plain.encode(photographs())
    reached = {
        length: [
            decibels(a, b)
            for a, b in zip(plain.decode(whole.trim(length)), photographs(), strict=True)
        ]
        for length in plain.lengths
    }
    totals = []
    for quality in (0, 16, 19.5, 100):
        tokenizer = FlexTok(weights="tiny-flex", quality=quality)
        assert tokenizer.adaptive
        assert not plain.adaptive
        codes = tokenizer.encode(photographs())
        for place, count in enumerate(codes.counts):
            enough = [n for n in plain.lengths if reached[n][place] >= quality]
            assert count == min(enough, default=32)
            assert torch.equal(codes.ids[place], whole.ids[place][:count])
        totals.append(sum(codes.counts))
        assert codes.counts == tokenizer.encode(photographs(), batch_size=12).counts
        # How many tokens there are stands in the codes: any quality decodes them.
        assert tokenizer.tokenizer_hash == plain.tokenizer_hash
        write_codes(codes, tmp_path / f"{quality}.mmt")
        read = read_codes(tmp_path / f"{quality}.mmt")
        for a, b in zip(plain.decode(read), tokenizer.decode(codes), strict=True):
            assert torch.equal(a, b)
    assert totals[0] == len(photographs())
    assert totals[-1] == 32 * len(photographs())
    assert totals == sorted({*totals})


def test_quality_is_measured_at_the_size_of_the_picture() -> None:
    big = [F.interpolate(p[None], (50, 41), mode="bilinear")[0] for p in photographs()[:4]]
    tokenizer = FlexTok(weights="tiny-flex", quality=18)
    codes = tokenizer.encode(big)
    for picture, made, count in zip(big, tokenizer.decode(codes), codes.counts, strict=True):
        assert made.shape == picture.shape
        assert count == 32 or decibels(made, picture) >= 18


def test_one_step_starts_from_zeros_and_more_from_noise() -> None:
    once, twice = direct(SMALL), direct(SMALL, steps=2)
    picture = [photographs()[0]]
    codes = once.encode(picture)
    network, ids = once.network, codes.ids[0][None]
    with torch.no_grad():
        given = network.decoder.condition(network.quantize.lookup(ids), torch.tensor([8]))
        latent = network.decoder(torch.zeros(1, 3, 8, 8), torch.ones(1), given)
        want = (network.vae.vae.decode(latent) + 1) / 2
    want = F.interpolate(want, (32, 32), mode="bilinear", antialias=True).clamp(0, 1)[0]
    torch.testing.assert_close(once.decode(codes)[0], want)
    other = direct(SMALL, steps=2, seed=1)
    other.__dict__["network"] = once.network
    assert not torch.equal(twice.decode(codes)[0], other.decode(codes)[0])
    assert not torch.equal(twice.decode(codes)[0], once.decode(codes)[0])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_flow_that_knows_the_picture_arrives_there(steps: int) -> None:
    picture = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return towards(lambda x, t, given: given, x, t, picture)

    torch.testing.assert_close(sample(noise, velocity, velocity, steps=steps), picture)


def test_the_spectrum_is_orthonormal() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(50, 3, 16, 16, generator=generator) * 2 - 1
    whole, part = Spectrum(16, 16), Spectrum(16, 5)
    torch.testing.assert_close(whole.decode(whole.encode(pictures)), pictures)
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    axes = np.einsum("uc,bchw->buhw", colours, pictures.double().numpy())
    want = dctn(axes, axes=(2, 3), norm="ortho")[:, :, :5, :5]
    torch.testing.assert_close(
        part.encode(pictures).double(), torch.from_numpy(want), atol=1e-5, rtol=0
    )
    part.fit(pictures)
    latent = part.encode(pictures)
    torch.testing.assert_close(latent.mean(0), torch.zeros(3, 5, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent.std(0), torch.ones(3, 5, 5))
    torch.testing.assert_close(part.encode(part.decode(latent)), latent, atol=1e-4, rtol=1e-4)
    error = torch.randn(latent.shape, generator=generator)
    pixels = part.decode(latent + error) - part.decode(latent)
    torch.testing.assert_close(pixels.square().sum(), (error * part.deviation).square().sum())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lengths": (2, 8)}, "rise from 1 to 8"),
        ({"lengths": (1, 4)}, "rise from 1 to 8"),
        ({"lengths": (4, 1, 8)}, "rise from 1 to 8"),
        ({"lengths": (1, 1, 8)}, "rise from 1 to 8"),
        ({"lengths": (-1, 8)}, "rise from 1 to 8"),
        ({"spectrum": (4,)}, "frequencies"),
        ({"spectrum": (16, 16)}, "frequencies"),
        ({"spectrum": (16,), "vae_channels": (8, 8)}, "frequencies"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        dataclasses.replace(SMALL, **settings)


@pytest.mark.parametrize("quality", ["24", -1, 101, True, float("nan")])
def test_qualities_that_cannot_be_are_refused(quality: object) -> None:
    with pytest.raises(InputError, match=r"flextok: quality must be (0 to 100|a finite number)"):
        FlexTok(quality=quality)
