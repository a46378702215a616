"""Bad videos: one clear line for every one of them, and bounded memory."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mmtok.errors import InputError
from mmtok.io import container, frames, video
from mmtok.io.video import is_video, load_video
from tests.videos import (
    add_sound,
    decord_only,
    refused,
    write,
)


def test_missing_directory_and_empty(tmp_path):
    refused(tmp_path / "none.mp4", "no such file")
    refused(tmp_path, "directory")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "empty")


def test_not_a_video(tmp_path, capfd):
    (tmp_path / "notes.mp4").write_text("this is not a video\n" * 50)
    refused(tmp_path / "notes.mp4", "not a video")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.mp4", format="JPEG")
    refused(tmp_path / "picture.mp4", "not a video")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    refused(tmp_path / "list.mp4", "not a video")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mux", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe"}])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_mp4(tmp_path, capfd, mux, share):
    path = write(tmp_path / "cut.mp4", **mux)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["cut.mkv", "cut.webm", "cut.avi", "cut.mov"])
def test_truncated_files_of_other_kinds(tmp_path, name):
    codec = {"cut.webm": "libvpx-vp9", "cut.avi": "mpeg4"}.get(name, "libx264")
    path = write(tmp_path / name, codec=codec)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    refused(path, "cut off")


def test_sound_only(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as file:
        add_sound(file)
    refused(tmp_path / "song.mp4", "only sound")


@pytest.mark.parametrize(
    ("name", "mux", "said"),
    [
        ("none.mp4", {}, "no stream"),
        ("none.mp4", {"movflags": "empty_moov"}, "without frames"),
        ("none.mkv", {}, "before its first frame"),
        ("none.avi", {"codec": "mpeg4"}, "without frames"),
    ],
)
def test_no_frames(tmp_path, name, mux, said):
    refused(write(tmp_path / name, count=0, **mux), said)


def test_damaged_frames(tmp_path, capfd):
    path = write(tmp_path / "damaged.mp4", gop=1)
    damaged = bytearray(path.read_bytes())
    start = damaged.index(b"mdat")
    damaged[start + 200 : start + 4000] = b"\xff" * 3800
    path.write_bytes(damaged)
    refused(path, "damaged", backend="pyav")


@pytest.mark.parametrize("mux", [{}, {"movflags": "frag_keyframe+empty_moov"}])
def test_random_damage_never_escapes_as_another_error(tmp_path, mux):
    path = write(tmp_path / "damaged.mp4", count=12, **mux)
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    random = np.random.default_rng(1)
    lines = []
    for _ in range(60):
        damaged = whole.copy()
        damaged[random.integers(0, len(whole), 4)] = random.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            load_video(path, frames=3)
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > 10
    assert not any("\n" in line for line in lines)


@decord_only
def test_decord_is_kept_from_headers_that_would_end_the_process(tmp_path):
    path = write(tmp_path / "lying.mp4")
    whole = bytearray(path.read_bytes())
    runs = whole.index(b"stts") + 8
    whole[runs + 4 : runs + 8] = b"\xe0\0\0\0"
    path.write_bytes(whole)
    refused(path, "header disagrees", backend="decord")
    assert load_video(path).backend == "pyav"


def test_limits(tmp_path, monkeypatch):
    path = write(tmp_path / "clip.mp4")
    refused(path, "at most 9", frames=10, max_frames=9)
    refused(path, "30 frames", "3.0 s", fps=10, max_frames=29)
    refused(path, "64 x 48", max_pixels=64 * 48 - 1)
    monkeypatch.setattr(video, "MAX_CLIP_PIXELS", 64 * 48 * 7)
    refused(path, "at most 7")
    assert len(load_video(path, frames=7).frames) == 7


def test_long_videos_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    """And while they are, should there be more in them than their packets say."""
    path, most = write(tmp_path / "clip.mp4", gop=100), 30 * container.LEAST_PIXELS
    assert load_video(path, max_source_pixels=most, backend="pyav").source_frames == 30
    index = container.index_video(path, max_pixels=video.MAX_PIXELS)
    assert len(frames.read_pyav(path, index, [10], most // 2)) == 1
    with pytest.raises(InputError, match="over 10 frames of 64 x 48 pixels"):
        frames.read_pyav(path, index, [10], most // 3)
    with pytest.raises(InputError, match="over 29 frames"):
        container._index_by_decoding(path, index.size, 0, most - 1)
    monkeypatch.setattr(container, "_first_frame", lambda file: pytest.fail("decoded"))
    refused(path, "over 29 frames of 64 x 48 pixels", max_source_pixels=most - 1)


def test_frames_that_grow_within_a_stream_keep_to_the_limit(tmp_path):
    path = tmp_path / "grows.ts"
    with av.open(str(path), "w", format="mpegts") as file:
        stream = file.add_stream("mpeg2video", rate=10)
        for number, size in enumerate([(64, 48), (640, 480)]):
            codec = av.CodecContext.create("mpeg2video", "w") if number else stream.codec_context
            codec.width, codec.height, codec.pix_fmt, codec.max_b_frames = *size, "yuv420p", 0
            codec.time_base = Fraction(1, 10)
            codec.framerate = Fraction(10)
            for time in range(10 * number, 10 * number + 11):
                frame = None
                if time < 10 * number + 10:
                    frame = av.VideoFrame(*size, "yuv420p")
                    frame.pts, frame.time_base = time, Fraction(1, 10)
                for packet in codec.encode(frame):
                    packet.stream = stream
                    file.mux(packet)
    assert load_video(path, backend="pyav").frames[-1].size == (640, 480)
    refused(path, "picture of 640 x 480 pixels", max_pixels=64 * 48, backend="pyav")


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 0},
        {"frames": -1},
        {"fps": 0},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"frames": 3, "fps": 1},
        {"max_frames": 0},
        {"backend": "opencv"},
    ],
)
def test_arguments_that_make_no_sense(options):
    with pytest.raises(InputError, match=r"expected|must be"):
        load_video("never opened.mp4", **options)


def test_is_video(tmp_path):
    assert is_video(write(tmp_path / "clip.jpg.mp4"))
    hidden = write(tmp_path / "clip.mkv").rename(tmp_path / "clip.jpg")
    assert is_video(hidden)
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.mp4", format="PNG")
    assert not is_video(tmp_path / "picture.mp4")
    Image.new("RGB", (8, 8)).save(tmp_path / "moving.gif")
    assert not is_video(tmp_path / "moving.gif")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.avif")
    assert not is_video(tmp_path / "picture.avif")
    assert is_video(write(tmp_path / "old.avi", codec="mpeg4"))
    assert is_video("missing.MP4")
    assert not is_video("missing.jpg")
