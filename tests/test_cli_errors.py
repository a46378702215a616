"""Bad input on the command line: exit code 2, one clear line, no traceback, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mmtok.cli import listing
from mmtok.cli.app import main
from tests.conftest import picture

DUMMY = ["--model", "llava", "--dummy", "--max-new-tokens", "2"]


def bad_file(kind: str, folder: Path) -> Path:
    file = folder / f"{kind}.jpg"
    if kind == "empty":
        file.touch()
    elif kind == "text":
        file.write_text("not a picture")
    elif kind == "truncated":
        picture(0, 200, 200).save(file)
        file.write_bytes(file.read_bytes()[:3000])
    elif kind == "wide":
        Image.new("RGB", (50_000, 300)).save(file)
    elif kind == "folder":
        file.mkdir()
    return file


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no such file"),
        ("empty", "is empty"),
        ("text", "not an image"),
        ("truncated", "truncated"),
        ("wide", "50000"),
        ("folder", "is a directory"),
    ],
)
@pytest.mark.parametrize("command", ["run", "profile"])
def test_image_files(command, kind, said, tmp_path, refused):
    good, bad = tmp_path / "good.png", bad_file(kind, tmp_path)
    picture(0, 50, 50).save(good)
    more = ["--overlay", tmp_path / "o.png"] if command == "run" else []
    line = refused(
        command, good, bad, "--text", "what?", "--model", "llava", "--dummy",
        "--reduce", "random(keep=0.5)", *more,
    )  # fmt: skip
    assert str(bad) in line
    assert said in line


def bad_video(kind: str, folder: Path) -> Path:
    file = folder / f"{kind}.mp4"
    options = {"movflags": "empty_moov"} if kind == "without frames" else {}
    with av.open(str(file), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
        for number in range(0 if options else 20):
            pixels = np.asarray(picture(number, 64, 48))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    if kind == "cut off":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


@pytest.mark.parametrize("kind", ["cut off", "without frames"])
def test_video_files(kind, tmp_path, refused):
    file = bad_video(kind, tmp_path)
    overlay = ("--overlay", tmp_path / "o.png")
    line = refused("run", file, "--text", "what?", *DUMMY, *overlay)
    assert str(file) in line
    assert kind in line


@pytest.mark.parametrize(
    "options", [["--frames", "0"], ["--fps", "-1"], ["--frames", "4", "--fps", "1"]]
)
def test_sampling(options, tmp_path, refused):
    file = bad_video("whole", tmp_path)
    assert options[0][2:] in refused("run", file, "--text", "what?", *DUMMY, *options)


@pytest.mark.parametrize("options", [("--frames", "0"), ("--fps", "0"), ("--seed", "-1")])
def test_options_are_checked_whatever_the_media(options, tmp_path, refused):
    picture(0, 40, 40).save(file := tmp_path / "good.png")
    assert "got" in (line := refused("run", file, "--text", "hi", *DUMMY, *options)) or "0" in line


def test_text_that_is_no_unicode(tmp_path, refused):
    picture(0, 40, 40).save(file := tmp_path / "good.png")
    assert "not valid Unicode" in refused("run", file, "--text", "\ud800", *DUMMY)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("todre(keep=0)", "keep"),
        ("todre(keep=1.5)", "keep"),
        ("todre(keep=-3)", "keep"),
        ("tordre(keep=0.1)", "did you mean 'todre'"),
        ("todre(keap=0.1)", "did you mean 'keep'"),
        ("todre(keep=0.1", "cannot read spec"),
        ("todre(keep=__import__('os'))", "cannot read spec"),
        ("todre(0.1)", "cannot read spec"),
        ("", "cannot read spec"),
    ],
)
def test_specs(spec, said, tmp_path, refused):
    file = tmp_path / "a.png"
    picture(0, 50, 50).save(file)
    overlay = ("--overlay", tmp_path / "o.png")
    line = refused("run", file, "--text", "what?", *DUMMY, "--reduce", spec, *overlay)
    assert said in line
    assert said in refused("plan", "llava-1.5-7b", "--reduce", spec)


def test_more_tokens_than_there_are(tmp_path, refused):
    file = tmp_path / "a.png"
    picture(0, 50, 50).save(file)
    overlay = ("--overlay", tmp_path / "o.png")
    for command in (["run", *overlay, "--max-new-tokens", "2"], ["profile", "--new-tokens", "2"]):
        line = refused(
            *(command[0], file, "--text", "what?", "--model", "llava", "--dummy"),
            *("--reduce", "random(keep=37)", *command[1:]),
        )
        assert "keep=37" in line
        assert "36 tokens" in line


def test_as_many_tokens_as_there_are(tmp_path, capsys):
    file = tmp_path / "a.png"
    picture(0, 50, 50).save(file)
    assert main(["run", str(file), "--text", "what?", *DUMMY, "--reduce", "random(keep=36)"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "lava", "--dummy"], "did you mean"),
        (["--model", "nowhere-to-be-found"], "unknown model"),
        (["--model", "llava-1.5-7b"], "dummy"),
        (["--model", "./no-such-folder"], "no such folder"),
        ([*DUMMY, "--dtype", "float8"], "float8"),
        ([*DUMMY, "--device", "tpu"], "tpu"),
        ([*DUMMY, "--max-new-tokens", "0"], "max-new-tokens must be at least 1, got 0"),
        ([*DUMMY, "--overlay", "/no-such-folder/o.png"], "no such folder"),
        ([*DUMMY, "--overlay", "/proc/o.png"], "cannot be written"),
        ([*DUMMY, "--overlay", "o.txt"], ".png"),
        ([*DUMMY, "--reduce", "downsample(keep=0.5)", "--model", "internvl"], "downsample"),
    ],
)
def test_options(arguments, said, tmp_path, refused):
    file = tmp_path / "a.png"
    picture(0, 50, 50).save(file)
    assert said in refused("run", file, "--text", "what?", *arguments)


def test_no_gpu(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    file = tmp_path / "a.png"
    picture(0, 50, 50).save(file)
    assert "0 GPUs" in refused("run", file, "--text", "what?", *DUMMY, "--device", "cuda")
    assert "0 GPUs" in refused("demo", "--out", tmp_path / "out", "--device", "cuda")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "unknown model"),
        (["llava-1.5-7b", "--image-size", "336"], "HEIGHTxWIDTH"),
        (["llava-1.5-7b", "--image-size", "0x10"], "positive"),
        (["llava-1.5-7b", "--text-tokens", "-1"], "text_tokens"),
        (["llava-1.5-7b", "--new-tokens", "0"], "new_tokens"),
        (["llava-1.5-7b", "--frames", "8", "--images", "2"], "images=2 and frames=8"),
        (["llava-1.5-7b", "--frames", "0"], "frames must be at least 1, got 0"),
        (["/nope.json"], "expected a model's config.json or the folder of one"),
    ],
)
def test_plan(arguments, said, refused):
    assert said in refused("plan", *arguments)


def test_demo_needs_a_folder(tmp_path, refused):
    (tmp_path / "file").touch()
    assert "--out" in refused("demo", "--out", tmp_path / "file" / "out")
    assert "--out" in refused("demo", "--out", tmp_path / "file")


@pytest.mark.parametrize("arguments", [["run"], ["run", "a.png"], ["plan"], ["run", "--no"], ["x"]])
def test_usage(arguments, capsys):
    assert main(arguments) == 2
    assert "Error" in capsys.readouterr().err


def odd_picture(kind: str, file: Path) -> None:
    some = picture(0, 60, 40)
    if kind == "cmyk":
        some.convert("CMYK").save(file.with_suffix(".jpg"))
    elif kind == "palette":
        some.quantize(16).save(file)
    elif kind == "16-bit":
        values = np.arange(60 * 40, dtype=np.uint16).reshape(40, 60) * 27
        Image.fromarray(values).save(file)
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        some.save(file.with_suffix(".jpg"), exif=exif)
    else:
        picture(0, 1, 1).save(file)


@pytest.mark.parametrize("kind", ["cmyk", "palette", "16-bit", "rotated", "1x1"])
@pytest.mark.parametrize("model", ["llava", "llava_onevision", "qwen2_5_vl"])
def test_odd_pictures_work(kind, model, tmp_path, capsys):
    odd_picture(kind, tmp_path / "odd.png")
    (file,) = tmp_path.iterdir()
    arguments = ["run", str(file), "--text", "what?", "--model", model, "--dummy", "--no-count"]
    more = ["--max-new-tokens", "1", "--overlay", str(tmp_path / "o.png"), "--json"]
    assert main([*arguments, *more, "--reduce", "random(keep=0.5)"]) == 0
    assert json.loads(capsys.readouterr().out)["ledger"]["stages"]
    width, height = Image.open(tmp_path / "o.png").size
    if model == "qwen2_5_vl" and kind != "1x1":
        assert (width < height) == (kind == "rotated")


def test_a_bug_is_reported_as_one(monkeypatch, capsys):
    def broken() -> None:
        raise RuntimeError("wires crossed")

    monkeypatch.setattr(listing, "inventory", broken)
    assert main(["list"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "wires crossed" in err
    assert "report it" in err.splitlines()[-1]


def test_interrupt(monkeypatch, capsys):
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "inventory", stopped)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
