"""Spectral distances against sums written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmtok.errors import InputError
from mmtok.tokenizers.measures_audio import FLOOR, log_mel, mel_distance, stft_distance

RATE, N_FFT, HOP, MELS = 8000, 64, 16, 8


def slow_spectrogram(samples, n_fft, hop):
    """(n_fft / 2 + 1, frames), every Fourier coefficient a sum of its own."""
    padded = np.concatenate([np.zeros(n_fft // 2), samples, np.zeros(n_fft // 2)])
    steps = np.arange(n_fft)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * steps / n_fft)
    rows = []
    for k in range(n_fft // 2 + 1):
        wave = window * np.exp(-2j * np.pi * k * steps / n_fft)
        starts = range(0, len(samples) + 1, hop)
        rows.append([abs((padded[s : s + n_fft] * wave).sum()) / (n_fft / 4) for s in starts])
    return np.array(rows)


def slow_mel(hertz):
    """Slaney's scale: linear up to 1 kHz, 27 logarithmic steps to 6.4 kHz."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def slow_hertz(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def slow_log_mel(samples):
    edges = [slow_hertz(i * slow_mel(RATE / 2) / (MELS + 1)) for i in range(MELS + 2)]
    bank = np.zeros((MELS, N_FFT // 2 + 1))
    for band in range(MELS):
        low, middle, high = edges[band : band + 3]
        for k in range(N_FFT // 2 + 1):
            f = k * RATE / N_FFT
            rise, fall = (f - low) / (middle - low), (high - f) / (high - middle)
            bank[band, k] = max(0, min(rise, fall))
    return np.log(np.maximum(bank @ slow_spectrogram(samples, N_FFT, HOP), FLOOR))


def recordings(length, seed=0):
    """Two (2, S) that differ, one item of each with a silent part."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (0.3 * torch.randn(2, length, generator=generator) for _ in range(2))
    x[0, length // 2 :] = 0
    y[1, : length // 3] = 0
    return x, y


@pytest.mark.parametrize("length", [200, 65, 1])
def test_mel_distance(length):
    got, want = recordings(length)
    settings = {"n_fft": N_FFT, "hop": HOP, "mels": MELS}
    spectra = log_mel(want, RATE, **settings)
    distances = mel_distance(got, want, RATE, **settings)
    for i in range(2):
        a, b = slow_log_mel(got[i].double().numpy()), slow_log_mel(want[i].double().numpy())
        torch.testing.assert_close(spectra[i].double(), torch.tensor(b), atol=1e-3, rtol=1e-4)
        assert float(distances[i]) == pytest.approx(abs(a - b).mean(), rel=1e-4)


@pytest.mark.parametrize("length", [200, 65, 1])
def test_stft_distance(length):
    got, want = recordings(length)
    distances = stft_distance(got, want, (32, 64))
    for i in range(2):
        wanted = 0.0
        for n_fft in (32, 64):
            a, b = (slow_spectrogram(x[i].double().numpy(), n_fft, n_fft // 4) for x in (got, want))
            norm = max(np.linalg.norm(b), FLOOR * math.sqrt(b.size))
            logs = np.log(np.maximum(a, FLOOR)) - np.log(np.maximum(b, FLOOR))
            wanted += np.linalg.norm(a - b) / norm + abs(logs).mean()
        assert float(distances[i]) == pytest.approx(wanted / 2, rel=1e-4)


def test_known_distances():
    """0 to itself; twice as loud is ln 2 away; silence has a spectral convergence of 1."""
    want = 0.1 * torch.sin(torch.arange(4000) * 0.7)[None] + 0.05 * torch.randn(
        1, 4000, generator=torch.Generator().manual_seed(0)
    )
    assert float(mel_distance(want, want, RATE)) == 0
    assert float(stft_distance(want, want)) == 0
    assert float(mel_distance(2 * want, want, RATE)) == pytest.approx(math.log(2), rel=0.01)
    assert float(stft_distance(2 * want, want)) == pytest.approx(1 + math.log(2), rel=0.01)
    silent = torch.zeros_like(want)
    assert float(stft_distance(silent, silent)) == 0
    assert bool(torch.isfinite(stft_distance(want, silent)).all())


def test_gradients_are_finite_where_there_is_silence():
    got = torch.zeros(2, 600, requires_grad=True)
    want = torch.stack([torch.zeros(600), torch.sin(torch.arange(600) * 0.3)])
    (mel_distance(got, want, RATE).sum() + stft_distance(got, want).sum()).backward()
    assert bool(torch.isfinite(got.grad).all())


@pytest.mark.parametrize("shapes", [((1, 5), (1, 6)), ((5,), (5,)), ((1, 0), (1, 0))])
def test_what_cannot_be_compared_is_refused(shapes):
    a, b = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(InputError, match="of one shape"):
        mel_distance(a, b, RATE)
    with pytest.raises(InputError, match="of one shape"):
        stft_distance(a, b)
    with pytest.raises(InputError, match="at least one"):
        stft_distance(torch.zeros(1, 9), torch.zeros(1, 9), ())
