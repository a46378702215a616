"""Media files as tensors and tensors as media files, for tokenizers.

Pictures (3, H, W) and clips (T, 3, H, W) in [0, 1], recordings (C, S) in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.codes import MAX_VALUES, check_shape
from mmtok.errors import InputError
from mmtok.io.audio import is_audio, load_audio, save_audio
from mmtok.io.files import check_file, reason, replacing
from mmtok.io.image import load_image
from mmtok.io.video import is_video, load_video

MAX_FRAMES = 4096
"""Most frames of a clip."""
SUFFIXES = {"image": (".png",), "video": (".mp4",), "audio": (".wav", ".flac")}
"""What each kind of media is written as; the first is the default."""


def kind_of(path: str | PathLike[str]) -> str:
    """ "audio", "video" or "image": by the file's first bytes, else by its name."""
    if is_audio(path):
        return "audio"
    return "video" if is_video(path) else "image"


def load_media(
    path: str | PathLike[str],
    *,
    kinds: Sequence[str] = ("image", "video", "audio"),
    frames: int | None = None,
    fps: float | None = None,
    sample_rate: int | None = None,
    channels: int | None = 1,
) -> tuple[Tensor, dict[str, Any]]:
    """A media file as a tensor, and its `fps` or `sample_rate`.

    Args:
        path: the file.
        kinds: of media that are wanted.
        frames: of a clip, evenly spaced; default: all.
        fps: or so many frames per second.
        sample_rate: Hz to which a recording is brought; default: its own.
        channels: to which a recording is brought; None: its own.

    Raises:
        InputError: the file cannot be read, is of another kind, or exceeds the limits.
    """
    kind = kind_of(check_file(path, " or ".join(kinds)))
    if kind not in kinds:
        raise InputError(f"{path}: is {kind}, expected {' or '.join(kinds)}")
    if kind == "audio":
        samples, rate = load_audio(path, sample_rate=sample_rate, channels=channels)
        return samples, {"sample_rate": rate}
    if kind == "image":
        return _pixels(np.asarray(load_image(path))), {}
    wanted = MAX_FRAMES if frames is None and fps is None else frames
    clip = load_video(path, frames=wanted, fps=fps, max_frames=MAX_FRAMES)
    if len(clip.frames) < clip.source_frames and frames is None and fps is None:
        raise InputError(f"{path}: {clip.source_frames} frames, expected at most {MAX_FRAMES}")
    width, height = clip.frames[0].size
    if 3 * width * height * len(clip.frames) > MAX_VALUES:
        most = MAX_VALUES // (3 * width * height)
        raise InputError(
            f"{path}: {len(clip.frames)} frames of {width} x {height}, expected at most {most} of "
            "that size: sample fewer with frames or fps"
        )
    shown = torch.stack([_pixels(np.asarray(frame)) for frame in clip.frames])
    rate_hz = len(clip.frames) / clip.duration_s if clip.duration_s > 0 else clip.fps
    return shown, {"fps": round(rate_hz, 3)}


def save_media(media: Tensor, path: str | PathLike[str], meta: dict[str, Any]) -> None:
    """Write a tensor as the media file that its shape and the path's extension say.

    Args:
        media: (3, H, W), (T, 3, H, W) or (C, S).
        path: the file, .png, .mp4, .wav or .flac; it appears whole or not at all.
        meta: `sample_rate` of a recording (default 24,000 Hz), `fps` of a clip (default 24).

    Raises:
        InputError: the extension does not fit the media, or the file cannot be written.
    """
    kind, suffix = check_shape(tuple(media.shape)), Path(path).suffix.lower()
    if suffix not in SUFFIXES[kind]:
        raise InputError(
            f"{path}: {kind} is written as {' or '.join(SUFFIXES[kind])}, not {suffix!r}"
        )
    if kind == "audio":
        save_audio(media, int(_number(meta, "sample_rate", 24_000, 384_000)), path)
        return
    pixels = media.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    clip = pixels.reshape(-1, *pixels.shape[-3:]).expand(-1, 3, -1, -1)
    frames = clip.permute(0, 2, 3, 1).contiguous().numpy()
    with replacing(path) as beside:
        if kind == "image":
            from PIL import Image

            Image.fromarray(frames[0]).save(beside)
        else:
            _write_video(frames, _number(meta, "fps", 24, 1000), beside)


def _write_video(frames: Any, fps: float, path: Path) -> None:
    """H.264 near the limit of what can be seen; full colour where a side is odd."""
    import av

    height, width = frames.shape[1:3]
    try:
        with av.open(str(path), "w") as file:
            rate = Fraction(fps).limit_denominator(1001)
            stream: Any = file.add_stream("libx264", rate=rate, options={"crf": "12"})
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
            for frame in frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
    except av.FFmpegError as error:
        raise InputError(
            f"{path}: {width} x {height} cannot be written as MP4 ({reason(error)})"
        ) from None


def _number(meta: dict[str, Any], name: str, default: float, most: float) -> float:
    value = meta.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise InputError(f"{name} must be above 0 and at most {most}, got {value!r:.40}")
    return value


def _pixels(image: Any) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
