"""How far a decoded recording is from the original: distances of spectrograms.

`mel_distance` is the mean absolute difference of logarithmic mel spectrograms, the reconstruction
term of WavTokenizer (arXiv 2408.16532). `stft_distance` is the multi-resolution STFT distance of
Parallel WaveGAN (arXiv 1910.11480): spectral convergence plus the mean absolute difference of
logarithmic magnitudes, averaged over several window lengths. Both are differentiable, so recipes
train on what benchmarks report.

Deviations: magnitudes are scaled so that a full-scale sine of the window has about 1, and the
logarithm starts at -80 dB below that: it has no opinion on what lies under the noise of 16 bits.
Frames at the ends see zeros, so that recordings of any length are taken.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from mmtok.errors import InputError

FLOOR = 1e-4
WINDOWS = (128, 256, 512, 1024)


def spectrogram(samples: Tensor, n_fft: int, hop: int) -> Tensor:
    """Magnitudes (B, n_fft / 2 + 1, 1 + S // hop) of recordings (B, S), Hann windows of n_fft."""
    window = torch.hann_window(n_fft, device=samples.device)
    padded = torch.nn.functional.pad(samples.float(), (n_fft // 2, n_fft // 2))
    made = torch.stft(padded, n_fft, hop, window=window, center=False, return_complex=True)
    return made.abs() / (n_fft / 4)


def log_mel(
    samples: Tensor, sample_rate: int, *, n_fft: int = 512, hop: int = 128, mels: int = 80
) -> Tensor:
    """Natural logarithm of mel spectra (B, mels, 1 + S // hop) of recordings (B, S)."""
    bank = _mel_bank(sample_rate, n_fft, mels).to(samples.device)
    return (bank @ spectrogram(samples, n_fft, hop)).clamp(min=FLOOR).log()


def mel_distance(
    got: Tensor,
    want: Tensor,
    sample_rate: int,
    *,
    n_fft: int = 512,
    hop: int = 128,
    mels: int = 80,
) -> Tensor:
    """Mean |difference| of logarithmic mel spectra.

    Args:
        got: recordings (B, S) in [-1, 1].
        want: the originals (B, S).
        sample_rate: Hz of both.
        n_fft: samples of a window.
        hop: samples from one window to the next.
        mels: bands, triangles on Slaney's mel scale from 0 Hz to half the sample rate.

    Returns:
        (B,), in nepers of a band's magnitude; times 8.7 it is in dB.

    Raises:
        InputError: the shapes differ, or there are no samples.
    """
    _check(got, want)
    spectra = (log_mel(x, sample_rate, n_fft=n_fft, hop=hop, mels=mels) for x in (got, want))
    a, b = spectra
    return (a - b).abs().mean((1, 2))


def stft_distance(got: Tensor, want: Tensor, windows: tuple[int, ...] = WINDOWS) -> Tensor:
    """Spectral convergence plus mean |difference| of logarithmic magnitudes, at several scales.

    Args:
        got: recordings (B, S) in [-1, 1].
        want: the originals (B, S).
        windows: samples of the windows, each with a hop of a quarter; the scales are averaged.

    Returns:
        (B,); silence instead of the original has a spectral convergence of 1.

    Raises:
        InputError: the shapes differ, or there are no samples or windows.
    """
    _check(got, want)
    if not windows:
        raise InputError("stft_distance needs at least one window length")
    total = got.new_zeros(len(got), dtype=torch.float32)
    for n_fft in windows:
        a, b = (spectrogram(x, n_fft, n_fft // 4) for x in (got, want))
        # A silent original would divide by zero: its norm counts as that of the floor.
        least = FLOOR * math.sqrt(b[0].numel())
        norm = torch.linalg.vector_norm(b, dim=(1, 2)).clamp(min=least)
        convergence = torch.linalg.vector_norm(a - b, dim=(1, 2)) / norm
        logs = a.clamp(min=FLOOR).log() - b.clamp(min=FLOOR).log()
        total = total + convergence + logs.abs().mean((1, 2))
    return total / len(windows)


@lru_cache(maxsize=16)
def _mel_bank(sample_rate: int, n_fft: int, mels: int) -> Tensor:
    """Weights (mels, n_fft / 2 + 1) of triangles with a peak of 1."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        n_fft // 2 + 1, mels, 0.0, sample_rate / 2, sample_rate, mel_scale="slaney"
    )
    return torch.from_numpy(bank).float().T.contiguous()


def _check(got: Tensor, want: Tensor) -> None:
    if got.ndim != 2 or got.shape != want.shape or not got.numel():
        raise InputError(
            f"distances compare recordings (B, S) of one shape, got {tuple(got.shape)} and "
            f"{tuple(want.shape)}"
        )
