"""What a video file holds, read from its packets without decoding a single frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.stream import Disposition

from mmtok.errors import InputError
from mmtok.io.files import reason
from mmtok.io.image import check_size
from mmtok.io.truncation import missing_bytes

EXPECTED = "a video file (MP4, MOV, WebM, Matroska, AVI, MPEG-TS, MPEG-PS, FLV, ASF or Ogg)"
LONGEST_GAP_S = 60.0
LEAST_PIXELS = 2**16
"""What a frame counts for at least: a tiny one takes time too."""
# Playlists and image sequences are left out on purpose: they would open further files.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg"


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The frames of one video stream, in the order they are shown.

    Attributes:
        pts: when each frame is shown, in units of `time_base`, ascending.
        time_base: seconds per unit.
        seek_points: (pts, where to seek) of the frames that decoding can start from, ascending;
            empty where the container's index does not make seeking to a frame exact.
        last_duration: how long the last frame is shown, in units; 0 where the file does not say.
        size: (width, height) as coded, before rotation.
        rotation: degrees, counterclockwise, that turn the coded picture upright.
        timed: whether `pts` are the decoder's own; otherwise they just number the frames.
        regular: the header counts the same frames, none is to be skipped, and none stands for
            over `LONGEST_GAP_S`. decord sizes its tables by these and, where they are absurd, ends
            the process.
    """

    pts: list[int]
    time_base: float
    seek_points: list[tuple[int, int]]
    last_duration: int
    size: tuple[int, int]
    rotation: int
    timed: bool
    regular: bool

    @property
    def timestamps_s(self) -> list[float]:
        """Seconds from the first frame to each frame."""
        return [(pts - self.pts[0]) * self.time_base for pts in self.pts]

    @property
    def fps(self) -> float:
        """Frames per second on average; of a single frame, one over how long it is shown."""
        span = self.pts[-1] - self.pts[0] or self.last_duration
        return max(len(self.pts) - 1, 1) / (span * self.time_base) if span > 0 else 1.0

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        last_s = self.last_duration * self.time_base if self.last_duration > 0 else 1 / self.fps
        return self.timestamps_s[-1] + last_s


@contextmanager
def open_video(file: Path) -> Iterator[tuple[Any, Any]]:
    """The open PyAV container and its first true video stream (cover art does not count).

    Raises:
        InputError: not a video, no video stream, or damaged, also when that shows while reading.
    """
    try:
        # "file:" keeps names with a colon from being taken for a network address.
        with av.open(f"file:{file}", options={"format_whitelist": _DEMUXERS}) as container:
            videos = container.streams.video
            streams = [s for s in videos if not s.disposition & Disposition.attached_pic]
            if not streams:
                kind = "only sound" if container.streams.audio else "no stream of any kind"
                raise InputError(f"{file}: holds {kind}, expected a file with a video stream")
            if streams[0].codec_context is None:
                raise InputError(f"{file}: unknown video codec, expected one that FFmpeg decodes")
            yield container, streams[0]
    except av.error.EOFError:
        raise InputError(f"{file}: ends before its first frame, expected at least one") from None
    except (av.error.FFmpegError, UnicodeError) as error:
        raise InputError(
            f"{file}: not a video, or a damaged one ({reason(error)}), expected {EXPECTED}"
        ) from None


class _Packet(NamedTuple):
    """What is kept of a packet: its times and flags, never its content."""

    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool
    is_discard: bool
    is_corrupt: bool

    @classmethod
    def of(cls, packet: Any) -> _Packet:
        return cls(
            packet.pts,
            packet.dts,
            int(packet.duration or 0),
            packet.is_keyframe,
            packet.is_discard,
            packet.is_corrupt,
        )


def index_video(file: Path, *, max_pixels: int, max_source_pixels: int | None = None) -> VideoIndex:
    """Read a file's packets, not its pictures, and list the frames they hold.

    Raises:
        InputError: cut off, damaged, without frames, above `max_pixels` a frame or
            `max_source_pixels` in all, or not a video.
    """
    missing = missing_bytes(file)
    if missing:
        raise InputError(f"{file}: cut off, {missing} bytes are missing, expected a complete file")
    with open_video(file) as (container, stream):
        coded = (stream.codec_context.width, stream.codec_context.height)
        if min(coded) > 0:
            check_size(coded, max_pixels=max_pixels, name=str(file))
        demuxer, time_base = container.format.name, stream.time_base
        packets = []
        for number, packet in enumerate(container.demux(stream)):
            check_work(file, number, coded, max_source_pixels)
            if packet.size:
                packets.append(_Packet.of(packet))
        counted = stream.frames or len(packets)
    if any(p.is_corrupt for p in packets):
        raise InputError(f"{file}: damaged or cut off, expected a complete video file")
    shown = [p for p in packets if not p.is_discard]
    times = sorted({p.pts for p in shown if p.pts is not None})
    size, rotation = _first_frame(file)
    check_size(size, max_pixels=max_pixels, name=str(file))
    check_work(file, len(packets), size, max_source_pixels)
    if len(times) < len(shown) or not time_base:
        return _index_by_decoding(file, size, rotation, max_source_pixels)
    last = max(p.duration for p in shown if p.pts == times[-1])
    longest = max(last, *(b - a for a, b in pairwise(times)), 0)
    return VideoIndex(
        pts=times,
        time_base=float(time_base),
        seek_points=_seek_points(packets, demuxer),
        last_duration=last,
        size=size,
        rotation=rotation,
        timed=True,
        regular=len(shown) == len(packets) == counted
        and longest * float(time_base) <= LONGEST_GAP_S,
    )


def check_work(file: Path, frames: int, size: tuple[int, int], most: int | None) -> None:
    """Refuse more frames of `size` (width, height) than hold `most` pixels together.

    Raises:
        InputError: there are more.
    """
    each = max(size[0] * size[1], LEAST_PIXELS)
    if most is not None and frames * each > most:
        raise InputError(
            f"{file}: a video of over {most // each} frames of {size[0]} x {size[1]} pixels, "
            "expected at most that many of this size: cut it, or scale it down"
        )


def _seek_points(packets: list[_Packet], demuxer: str) -> list[tuple[int, int]]:
    """(pts, where to seek) of the key frames: MP4 is indexed by dts, Matroska by pts."""
    keys = [(p.pts, p.dts) for p in packets if p.is_keyframe and p.pts is not None]
    if "mp4" in demuxer:
        return sorted((pts, pts if dts is None else dts) for pts, dts in keys)
    if "matroska" in demuxer:
        return sorted((pts, pts) for pts, _ in keys)
    return []


def _first_frame(file: Path) -> tuple[tuple[int, int], int]:
    """Coded (width, height) and rotation, from the first frame: proof that decoding works."""
    with open_video(file) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise InputError(f"{file}: holds a video stream without frames, expected at least one")
        return (frame.width, frame.height), frame.rotation


def _index_by_decoding(
    file: Path, size: tuple[int, int], rotation: int, max_source_pixels: int | None
) -> VideoIndex:
    """For files whose packets carry no usable times: decode once, keep no picture."""
    count = 0
    with open_video(file) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        for count, frame in enumerate(container.decode(stream), start=1):
            check_work(file, count, (frame.width, frame.height), max_source_pixels)
    return VideoIndex(
        pts=list(range(count)),
        time_base=1 / rate,
        seek_points=[],
        last_duration=1,
        size=size,
        rotation=rotation,
        timed=False,
        regular=False,
    )
