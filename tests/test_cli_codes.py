"""`mmtok encode`, `decode` and `inspect`: files and folders there and back, and their errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmtok.cli.app import main
from mmtok.io.audio import load_audio, save_audio
from mmtok.io.media import load_media, save_media
from mmtok.io.mmt import read_codes, write_codes
from mmtok.tokenizers import build
from tests.test_cli import movie, photo

EXACT = ("--tokenizer", "patchify(patch=4)")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """(exit code, the JSON object on the last line of stdout or None, stderr)."""
    code = main([*arguments, "--json"])
    done = capsys.readouterr()
    lines = done.out.strip().splitlines()
    assert "Traceback" not in done.err
    return code, json.loads(lines[-1]) if lines else None, done.err


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures come back pixel for pixel, clips as long and as large as they were."""
    media = tmp_path / "media"
    (media / "deeper").mkdir(parents=True)
    photo(media / "a.png", (37, 23))
    photo(media / "deeper" / "a.png", (8, 9), seed=1)
    movie(media / "m.mp4", frames=5)
    (media / "notes.txt").write_text("left alone")
    soundfile.write(media / "sound.wav", np.zeros(100), 8000)  # not for this tokenizer
    out, back = str(tmp_path / "codes.v1"), str(tmp_path / "back")
    code, done, _ = run(capsys, "encode", str(media), *EXACT, "--out", out)
    assert code == 0
    assert done["failed"] == []
    for item in done["items"]:
        assert item["bytes"] == Path(item["out"]).stat().st_size <= item["bits"] / 8 * 1.005 + 1000
        assert item["tokens"] == int(np.prod(item["grid"]))
    assert names(tmp_path / "codes.v1") == ["a.png.mmt", "deeper/a.png.mmt", "m.mp4.mmt"]
    code, again, _ = run(capsys, "decode", out, "--out", back)
    assert code == 0
    assert len(again["items"]) == 3
    assert names(tmp_path / "back") == ["a.png", "deeper/a.png", "m.mp4"]
    for name in ("a.png", "deeper/a.png"):
        with Image.open(media / name) as want, Image.open(tmp_path / "back" / name) as got:
            assert (np.asarray(want) == np.asarray(got)).all()
    want, meta = load_media(media / "m.mp4")
    got, got_meta = load_media(tmp_path / "back" / "m.mp4")
    assert want.shape == got.shape == (5, 3, 80, 96)
    assert meta == got_meta == {"fps": 4.0}
    assert (want - got).abs().mean() < 0.02
    code, seen, _ = run(capsys, "inspect", out)
    assert code == 0
    assert [item["tokens"] for item in seen["items"]] == [i["tokens"] for i in done["items"]]
    assert seen["items"][0]["tokenizer_hash"] == done["tokenizer_hash"]


def test_bad_files_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = photo(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    soundfile.write(tmp_path / "sound.wav", np.zeros(100), 8000)
    missing, sound = str(tmp_path / "missing.png"), str(tmp_path / "sound.wav")
    bad = str(tmp_path / "bad.png")
    out = ("--out", str(tmp_path / "out"))
    code, done, err = run(capsys, "encode", good, bad, missing, sound, *EXACT, *out)
    assert code == 3
    assert [item["path"] for item in done["items"]] == [good]
    assert [item["path"] for item in done["failed"]] == [bad, missing, sound]
    assert err.count("error: ") == 3
    assert names(tmp_path / "out") == ["good.png.mmt"]
    code, done, _ = run(capsys, "encode", bad, *EXACT, *out)
    assert code == 2
    assert done["items"] == []
    damaged = tmp_path / "out" / "damaged.mmt"
    damaged.write_bytes((tmp_path / "out" / "good.png.mmt").read_bytes()[:-20])
    code, done, err = run(capsys, "decode", str(tmp_path / "out"), "--out", str(tmp_path / "back"))
    assert code == 3
    assert [item["path"] for item in done["failed"]] == [str(damaged)]
    assert names(tmp_path / "back") == ["good.png"]
    assert run(capsys, "inspect", str(tmp_path / "out"))[0] == 3
    assert run(capsys, "inspect", str(damaged))[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("encode", "{photo}", "--tokenizer", "patchfy"), "did you mean 'patchify'"),
        (("encode", "{photo}", "--tokenizer", "patchify(patch=0)"), "patch must be 1 to 64"),
        (("encode", "{photo}", *EXACT, "--max-tokens", "0"), "--max-tokens must be at least 1"),
        (("encode", "{empty}", *EXACT), "no files ending in"),
        (("encode", "{photo}", "{photo2}", *EXACT, "--out", "{tmp}/x.mmt"), "a folder for many"),
        (("encode", "{photo}", "{twin}", *EXACT, "--out", "{tmp}/o"), "would both become"),
        (("encode", "{photo}", *EXACT, "--out", "{tmp}/no/x.mmt"), "no such folder"),
        (("decode", "{photo}", "--out", "{tmp}/o"), "damaged or no .mmt file"),
        (("decode", "{photo}", "--tokenizer", "x(", "--out", "{tmp}/o"), "cannot read spec"),
        (("inspect", "{photo}"), "damaged or no .mmt file"),
        (("inspect", "{tmp}/missing.mmt"), "no such file"),
    ],
)
def test_wrong_use_is_exit_code_2(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "twins").mkdir()
    known = {
        "photo": photo(tmp_path / "a.png"),
        "photo2": photo(tmp_path / "b.png"),
        "twin": photo(tmp_path / "twins" / "a.png"),
        "empty": str(tmp_path / "empty"),
        "tmp": str(tmp_path),
    }
    code, _, err = run(capsys, *(argument.format(**known) for argument in arguments))
    assert code == 2
    assert said in err
    assert list(tmp_path.rglob("*.mmt")) == []


def test_what_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture a user has is not replaced by what its codes decode to."""
    picture = Path(photo(tmp_path / "a.png"))
    before = picture.read_bytes()
    rough = ("--tokenizer", "patchify(patch=8, levels=4)")
    assert run(capsys, "encode", str(picture), *rough)[0] == 0
    code, _, err = run(capsys, "decode", str(tmp_path / "a.png.mmt"))
    assert code == 2
    assert "pass --overwrite" in err
    assert picture.read_bytes() == before
    assert run(capsys, "decode", str(tmp_path / "a.png.mmt"), "--overwrite")[0] == 0
    assert picture.read_bytes() != before
    assert names(tmp_path) == ["a.png", "a.png.mmt"]


def test_fewer_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = photo(tmp_path / "a.png")
    out = str(tmp_path / "short.mmt")
    _, done, _ = run(capsys, "encode", picture, *EXACT, "--max-tokens", "50", "--out", out)
    assert done["items"][0]["tokens"] == 50
    target = str(tmp_path / "part.png")
    code, done, _ = run(capsys, "decode", out, "--tokens", "7", "--out", target)
    assert (code, done["items"][0]["tokens"]) == (0, 7)
    with Image.open(picture) as want, Image.open(target) as got:
        assert got.size == want.size
        assert (np.asarray(want)[:4, :28] == np.asarray(got)[:4, :28]).all()


def test_a_file_does_not_choose_what_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = build("patchify").encode([torch.rand(3, 20, 20)])
    for spec in ("patchify(weights='elsewhere')", "patchify(patch='../x')", "patchify(patch=[1])"):
        write_codes(type(codes)(**vars(codes) | {"tokenizer": spec}), tmp_path / "x.mmt")
        code, _, err = run(capsys, "decode", str(tmp_path / "x.mmt"))
        assert code == 2
        assert "pass --tokenizer" in err
        target = str(tmp_path / "x.png")
        given = ("--tokenizer", "patchify", "--overwrite", "--out", target)
        assert run(capsys, "decode", str(tmp_path / "x.mmt"), *given)[0] == 0
    code, _, err = run(capsys, "decode", str(tmp_path / "x.mmt"), *EXACT, "--overwrite")
    assert code == 2
    assert "were made by" in err


def test_several_items_become_several_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = build("patchify").encode([torch.rand(3, 20, 20), torch.rand(3, 9, 40)])
    write_codes(codes, tmp_path / "two.mmt")
    code, done, _ = run(capsys, "decode", str(tmp_path / "two.mmt"))
    assert code == 0
    assert [Path(out).name for out in done["items"][0]["out"]] == ["two-0000.png", "two-0001.png"]
    assert torch.equal(read_codes(tmp_path / "two.mmt").ids[1], codes.ids[1])


def test_nothing_half_written_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = photo(tmp_path / "a.png")

    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = run(capsys, "encode", picture, *EXACT)
    assert code == 2
    assert "cannot be written (No space left on device)" in err
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_sound_there_and_back(suffix: str, tmp_path: Path) -> None:
    time = torch.arange(4801) / 48_000
    sound = torch.stack([torch.sin(2 * torch.pi * 440 * time), torch.zeros(4801)]) / 2
    save_media(sound, tmp_path / f"a{suffix}", {"sample_rate": 48_000})
    got, rate = load_audio(tmp_path / f"a{suffix}")
    assert rate == 48_000
    assert torch.allclose(got, sound, atol=1e-4)
    mono, meta = load_media(tmp_path / f"a{suffix}", sample_rate=24_000)
    assert meta == {"sample_rate": 24_000}
    assert mono.shape == (1, 2401)
    slower = torch.sin(2 * torch.pi * 440 * torch.arange(2401) / 24_000) / 4
    assert (mono[0] - slower)[50:-50].abs().max() < 1e-3  # the filter's ends ring
    assert load_audio(tmp_path / f"a{suffix}", sample_rate=44_100)[0].shape == (2, 4411)


def test_bad_sound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    save_audio(torch.zeros(1, 1000), 8000, path)
    whole = path.read_bytes()
    for data in (b"RIFF", whole[:30], b"fLaC" + bytes(50), b"RIFF\0\0\0\0WAVE"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.wav: "):
            load_audio(path)
    for bad in ("x.mp3", "x.png"):
        with pytest.raises(ValueError, match="is written as"):
            save_media(torch.zeros(1, 10), tmp_path / bad, {})
    with pytest.raises(ValueError, match="sample_rate must be"):
        save_media(torch.zeros(1, 10), path, {"sample_rate": -5})
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="is audio, expected image"):
        load_media(path, kinds=("image",))
