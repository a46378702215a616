"""Chosen frames of an indexed video as RGB pictures, by decord or by PyAV.

Only the chosen frames are kept; between them the decoders seek where the container allows it.
Both give the same bytes: they use the same decoder and the same colour conversion of FFmpeg.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import count, groupby
from pathlib import Path

import numpy as np
from PIL import Image

from mmtok.errors import InputError
from mmtok.io.container import VideoIndex, check_work, open_video
from mmtok.io.files import reason
from mmtok.io.image import check_size

_UPRIGHT = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}


class UnfitBackendError(Exception):
    """decord is missing, or does not see the same frames in this file as PyAV does."""


def read_pyav(
    file: Path,
    index: VideoIndex,
    wanted: list[int],
    max_source_pixels: int | None = None,
    max_pixels: int | None = None,
) -> list[Image.Image]:
    """The frames numbered `wanted` (ascending, unique), upright.

    Raises:
        InputError: a frame cannot be decoded, more pixels had to be than `max_source_pixels`, or
            a wanted frame has over `max_pixels`: frames may grow within a stream.
    """
    found = {}
    if index.seek_points:
        found = _decode(file, index, wanted, seek=True, most=max_source_pixels, each=max_pixels)
    if len(found) < len(wanted):
        found = _decode(file, index, wanted, seek=False, most=max_source_pixels, each=max_pixels)
    for number in wanted:
        if number not in found:
            at_s = index.timestamps_s[number]
            raise InputError(f"{file}: damaged, frame {number} at {at_s:.2f} s cannot be decoded")
    return [found[number] for number in wanted]


def read_decord(file: Path, index: VideoIndex, wanted: list[int]) -> list[Image.Image]:
    """The same frames by decord, one at a time.

    Raises:
        UnfitBackendError: decord is not installed, fails on the file, or its table of frames
            differs. It misplaces frames in containers without an exact index, and rotated ones.
    """
    try:
        import decord
    except (ImportError, OSError) as error:
        raise UnfitBackendError(f"decord cannot be imported ({reason(error)})") from None
    if not index.seek_points or index.rotation:
        raise UnfitBackendError("decord is not exact on rotated videos or outside MP4 and Matroska")
    if not index.regular:
        raise UnfitBackendError("the header disagrees with the frames, on which decord is not safe")
    try:
        reader = decord.VideoReader(f"file:{file}", num_threads=1)
        if len(reader) != len(index.pts):
            raise UnfitBackendError(f"decord counts {len(reader)} frames, not {len(index.pts)}")
        starts_s = np.asarray(reader.get_frame_timestamp([0, *wanted]))[:, 0]
        expected_s = np.array([index.timestamps_s[number] for number in wanted])
        if not np.allclose(starts_s[1:] - starts_s[0], expected_s, atol=2e-3):
            raise UnfitBackendError("decord gives the frames other times")
        return [_picture(reader[number], index.size) for number in wanted]
    except (decord.DECORDError, RuntimeError, AssertionError, StopIteration) as error:
        raise UnfitBackendError(f"decord failed ({reason(error)})") from None


def _picture(frame: object, size: tuple[int, int]) -> Image.Image:
    """A decord frame, whichever bridge is set, as a picture of the expected size."""
    pixels = frame.asnumpy() if hasattr(frame, "asnumpy") else np.asarray(frame)
    if pixels.shape != (size[1], size[0], 3):
        raise UnfitBackendError(f"decord gives frames of shape {pixels.shape}")
    return Image.fromarray(pixels)


def _decode(
    file: Path,
    index: VideoIndex,
    wanted: list[int],
    *,
    seek: bool,
    most: int | None = None,
    each: int | None = None,
) -> dict[int, Image.Image]:
    """The frames among `wanted` that decode cleanly, by number.

    With `seek`, each group of frames that follow the same key frame is reached by one seek;
    without, the file is decoded from its beginning.
    """
    keys = [pts for pts, _ in index.seek_points]

    def start(number: int) -> int | None:
        if not seek:
            return None
        return index.seek_points[max(bisect_right(keys, index.pts[number]) - 1, 0)][1]

    number_at = {index.pts[number]: number for number in wanted}
    found, decoded = {}, count(1)
    with open_video(file) as (container, stream):
        for target, group in groupby(wanted, key=start):
            last = index.pts[list(group)[-1]]
            if target is not None:
                container.seek(target, stream=stream)
            for ordinal, frame in enumerate(container.decode(stream)):
                check_work(file, next(decoded), (frame.width, frame.height), most)
                pts = frame.pts if index.timed else ordinal
                if pts in number_at and not frame.is_corrupt:
                    if each is not None:
                        check_size((frame.width, frame.height), max_pixels=each, name=str(file))
                    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
                    turn = _UPRIGHT.get(frame.rotation)
                    found[number_at[pts]] = picture if turn is None else picture.transpose(turn)
                if pts is not None and pts >= last:
                    break
    return found
