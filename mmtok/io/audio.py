"""Sound files as floating point samples, at the rate and with the channels that are asked for."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmtok.codes import MAX_VALUES
from mmtok.errors import InputError
from mmtok.io.files import check_file, reason, replacing

SUFFIXES = (".wav", ".flac")
MAX_CHANNELS = 8
MAX_RATE = 384_000
_EXPECTED = "a sound file (WAV or FLAC)"


def is_audio(path: str | PathLike[str]) -> bool:
    """Whether a file is to be read as sound: by its first bytes if there are any, else its name."""
    file = Path(path)
    head = b""
    if file.is_file():
        with file.open("rb") as stream:
            head = stream.read(12)
    if head.startswith(b"fLaC") or (head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE"):
        return True
    return len(head) < 12 and file.suffix.lower() in SUFFIXES


def load_audio(
    path: str | PathLike[str], *, sample_rate: int | None = None, channels: int | None = None
) -> tuple[Tensor, int]:
    """Samples (C, S) in [-1, 1] of a sound file, and their rate in Hz.

    Args:
        path: the file; its content decides the format, not its name.
        sample_rate: resample to this rate (libswresample); default: as it is.
        channels: 1 averages the file's channels, 2 doubles a single one; default: as they are.

    Raises:
        InputError: no such file, no sound, damaged, without samples, above the limits, or with
            channels that cannot be brought to the wanted number.
    """
    import soundfile

    file = check_file(path, _EXPECTED)
    try:
        with soundfile.SoundFile(str(file)) as opened:
            _check(file, opened.frames, opened.channels, opened.samplerate, sample_rate)
            rate, declared = int(opened.samplerate), int(opened.frames)
            samples = np.ascontiguousarray(opened.read(dtype="float32", always_2d=True).T)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise InputError(f"{file}: not a sound file ({reason(error)}), {_EXPECTED}") from None
    if not samples.shape[1] or samples.shape[1] != declared:
        raise InputError(f"{file}: cut off after {samples.shape[1]} of {declared} samples")
    samples = _mix(file, samples, channels)
    if sample_rate is not None and rate != sample_rate:
        samples, rate = resample(samples, rate, sample_rate), sample_rate
    return torch.from_numpy(samples), rate


def save_audio(samples: Tensor, sample_rate: int, path: str | PathLike[str]) -> None:
    """Write samples (C, S) as 16 bits, as WAV or FLAC by the path's extension.

    Raises:
        InputError: another extension, or the file cannot be written.
    """
    import soundfile

    if (suffix := Path(path).suffix.lower()) not in SUFFIXES:
        raise InputError(f"{path}: sound is written as {' or '.join(SUFFIXES)}, not {suffix!r}")
    data = samples.detach().float().cpu().clamp(-1, 1).T.numpy()
    with replacing(path) as beside:
        try:
            soundfile.write(str(beside), data, sample_rate, subtype="PCM_16")
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise InputError(f"{path}: cannot be written ({reason(error)})") from None


def resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Samples (C, S) at another rate; the length is ceil(S * wanted / rate)."""
    import av

    layout = {1: "mono", 2: "stereo"}.get(len(samples), f"{len(samples)}c")
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=wanted)
    frame: Any = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate = rate
    parts = [part.to_ndarray() for part in [*resampler.resample(frame), *resampler.resample(None)]]
    made = np.concatenate(parts, axis=1) if parts else samples[:, :0]
    length = -(-samples.shape[1] * wanted // rate)
    return np.pad(made, ((0, 0), (0, max(0, length - made.shape[1]))))[:, :length].copy()


def _check(file: Path, frames: int, channels: int, rate: int, wanted: int | None) -> None:
    if not 1 <= rate <= MAX_RATE or channels > MAX_CHANNELS:
        raise InputError(
            f"{file}: {channels} channels at {rate} Hz, expected at most {MAX_CHANNELS} channels "
            f"and {MAX_RATE} Hz"
        )
    if frames < 1:
        raise InputError(f"{file}: no samples, expected {_EXPECTED}")
    longest = frames * channels * max(rate, wanted or 0) // rate
    if longest > MAX_VALUES:
        raise InputError(f"{file}: {longest} samples, expected at most {MAX_VALUES}: cut it")


def _mix(file: Path, samples: NDArray[np.float32], channels: int | None) -> NDArray[np.float32]:
    if channels is None or channels == len(samples):
        return samples
    if channels == 1:
        return np.asarray(samples.mean(axis=0, keepdims=True), dtype=np.float32)
    if len(samples) == 1:
        return np.repeat(samples, channels, axis=0)
    raise InputError(f"{file}: {len(samples)} channels, expected {channels} or one")
