"""Video files as a few upright RGB frames with their times.

The frames are listed from the file's packets first, so that sampling is exact for variable frame
rates and wrong frame counts in headers, and only the sampled frames are kept in memory.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from PIL import Image

from mmtok.errors import InputError
from mmtok.io.container import EXPECTED, VideoIndex, index_video
from mmtok.io.files import check_file
from mmtok.io.frames import UnfitBackendError, read_decord, read_pyav
from mmtok.options import check_value

DEFAULT_FRAMES = 8
MAX_FRAMES = 256
"""Most frames of one clip."""
MAX_PIXELS = 7680 * 4320
"""Most pixels of one frame: 8K."""
MAX_CLIP_PIXELS = 2**29
"""Most pixels of all sampled frames together: 536,870,912, or 1.5 GiB of RGB."""

_SUFFIXES = ".mp4 .m4v .mov .3gp .webm .mkv .avi .ts .m2ts .mpg .mpeg .flv .wmv .asf .ogv"
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"M4A ")

Backend = Literal["auto", "decord", "pyav"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Sampled frames of one video.

    Attributes:
        frames: upright RGB pictures, in the order they are shown.
        timestamps_s: when each is shown, in seconds from the video's first frame.
        indices: the number of each frame in the video, ascending and unique.
        fps: frames per second of the source, on average.
        duration_s: length of the source in seconds.
        source_frames: how many frames the source holds.
        backend: what decoded it, "decord" or "pyav".
    """

    frames: list[Image.Image]
    timestamps_s: list[float]
    indices: list[int]
    fps: float
    duration_s: float
    source_frames: int
    backend: Literal["decord", "pyav"]


def load_video(
    path: str | PathLike[str],
    *,
    frames: int | None = None,
    fps: float | None = None,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
    max_source_pixels: int | None = None,
    backend: Backend = "auto",
) -> Clip:
    """A few frames of one video file, at the size they are stored in, upright.

    Args:
        path: the file; its content decides the format, not its name.
        frames: sample this many, k of n: frame floor((i + 0.5) n / k) for i = 0..k-1, the middle
            of each of k equal parts. With k >= n all n frames, each once. Default: 8.
        fps: or sample by time: the frame on show at 0, 1/fps, 2/fps ... seconds, each once.
        max_frames: refuse to sample more than this.
        max_pixels: width x height of a frame at most.
        max_source_pixels: refuse a file whose frames hold more together, sampled or not; one of
            less than 2^16 counts as that. It bounds what is decoded, but by PyAV alone.
        backend: "decord", "pyav", or "auto": decord where it is installed and sees the same
            frames as PyAV, else PyAV. Both give the same pixels.

    Raises:
        InputError: no such file, empty, not a video, no video stream, no frames, cut off,
            damaged, above a limit, or arguments that make no sense.
    """
    _check_arguments(frames, fps, max_frames, backend)
    file = check_file(path, EXPECTED)
    index = index_video(file, max_pixels=max_pixels, max_source_pixels=max_source_pixels)
    if fps is None:
        wanted = sample_by_count(len(index.pts), frames or DEFAULT_FRAMES)
    else:
        wanted = sample_by_fps(index.timestamps_s, index.duration_s, fps)
    _check_budget(file, index, len(wanted), max_frames)
    pictures, used = _read(file, index, wanted, backend, max_source_pixels, max_pixels)
    return Clip(
        frames=pictures,
        timestamps_s=[index.timestamps_s[i] for i in wanted],
        indices=wanted,
        fps=index.fps,
        duration_s=index.duration_s,
        source_frames=len(index.pts),
        backend=used,
    )


def sample_by_count(total: int, count: int) -> list[int]:
    """The middles of `count` equal parts of `total` frames: floor((i + 0.5) total / count)."""
    if count >= total:
        return list(range(total))
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def sample_by_fps(timestamps_s: list[float], duration_s: float, fps: float) -> list[int]:
    """The frames on show at 0, 1/fps, 2/fps ... seconds, each at most once."""
    if fps * duration_s > 4 * len(timestamps_s):
        return list(range(len(timestamps_s)))
    count = max(1, round(duration_s * fps))
    # Half a millisecond forgives times that the container has rounded.
    shown = (bisect_right(timestamps_s, i / fps + 5e-4) - 1 for i in range(count))
    return sorted(set(shown))


def is_video(path: str | PathLike[str]) -> bool:
    """Whether a file is to be read as a video rather than an image.

    Its first bytes decide where they are those of a video container or of a known image format;
    otherwise (text, a missing file) the extension does. Nothing is decoded.
    """
    file = Path(path)
    head = b""
    if file.is_file():
        with file.open("rb") as stream:
            head = stream.read(16)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return head[8:12] not in _STILL_BRANDS
    if head.startswith((b"\x1a\x45\xdf\xa3", b"FLV", b"\x30\x26\xb2\x75", b"OggS", b"\0\0\1\xba")):
        return True
    if head.startswith(b"RIFF"):
        return head[8:12] == b"AVI "
    if head.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*")):
        return False
    return file.suffix.lower() in _SUFFIXES.split(" ")


def check_sampling(frames: int | None, fps: float | None) -> None:
    """Refuse a way of sampling frames that makes no sense, whether there is a video or not.

    Raises:
        InputError: both are given, or one is no number or not positive.
    """
    check_value("frames", frames, int | None)
    check_value("fps", fps, float | None)
    if frames is not None and fps is not None:
        raise InputError(f"frames={frames} and fps={fps}: expected one of them, not both")
    if frames is not None and frames < 1:
        raise InputError(f"frames={frames}: expected at least 1")
    if fps is not None and fps <= 0:
        raise InputError(f"fps={fps}: expected a positive number of frames per second")


def _check_arguments(
    frames: int | None, fps: float | None, max_frames: int, backend: Backend
) -> None:
    check_sampling(frames, fps)
    if max_frames < 1:
        raise InputError(f"max_frames={max_frames}: expected at least 1")
    if backend not in ("auto", "decord", "pyav"):
        raise InputError(f"backend={backend!r}: expected 'auto', 'decord' or 'pyav'")


def _check_budget(file: Path, index: VideoIndex, count: int, max_frames: int) -> None:
    if count > max_frames:
        raise InputError(
            f"{file}: {count} frames asked of a video of {index.duration_s:.1f} s, expected at "
            f"most {max_frames}: ask for fewer, or raise max_frames"
        )
    width, height = index.size
    if count * width * height > MAX_CLIP_PIXELS:
        raise InputError(
            f"{file}: {count} frames of {width} x {height} pixels, expected at most "
            f"{MAX_CLIP_PIXELS // (width * height)} of that size: ask for fewer"
        )


def _read(
    file: Path,
    index: VideoIndex,
    wanted: list[int],
    backend: Backend,
    most: int | None,
    max_pixels: int,
) -> tuple[list[Image.Image], Literal["decord", "pyav"]]:
    if backend != "pyav":
        try:
            return read_decord(file, index, wanted), "decord"
        except UnfitBackendError as error:
            if backend == "decord":
                raise InputError(f"{file}: {error}, expected backend='pyav' or 'auto'") from None
    return read_pyav(file, index, wanted, most, max_pixels), "pyav"
