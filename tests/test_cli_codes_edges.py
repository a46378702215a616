"""`mmtok encode`, `decode` and `inspect` at the edges: sizes, hostile strings, what ships."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import soundfile
import torch

import mmtok.tokenizers
from mmtok.cli.app import main
from mmtok.io import mmt_header
from mmtok.io.audio import save_audio
from mmtok.io.mmt import write_codes
from mmtok.tokenizers import Patchify, Tokenizer, WavTokenizer, build
from tests.test_cli import photo
from tests.test_cli_codes import EXACT, names, run


def test_a_picture_too_large_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [photo(tmp_path / "a.png", (1000, 1000)), photo(tmp_path / "b.png", (8, 8))]
    code, done, err = run(capsys, "encode", *files, "--tokenizer", "tiny-vq")
    assert (code, len(done["items"])) == (3, 1)
    assert "62500 tokens, expected at most 16384" in err
    encode = Patchify.encode_batch

    def full(self: Patchify, media: torch.Tensor) -> torch.Tensor:
        if media.shape[-1] == 1000:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return encode(self, media)

    monkeypatch.setattr(Patchify, "encode_batch", full)
    code, done, err = run(capsys, "encode", *files, *EXACT, "--overwrite")
    assert (code, len(done["items"])) == (3, 1)
    assert "a.png: memory does not suffice" in err


def test_inspect_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = build("patchify").encode([torch.rand(3, 9, 9)])
    named = type(codes)(**vars(codes) | {"tokenizer": "\x1b[31mred\nitems: 7"})
    write_codes(named, tmp_path / "a.mmt")
    assert main(["inspect", str(tmp_path / "a.mmt")]) == 0
    assert "tokenizer: \\x1b[31mred\\nitems: 7\n" in capsys.readouterr().out
    assert main(["decode", str(tmp_path / "a.mmt")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_names_of_files_do_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "a\n\x1b[31merror: none.png"
    photo(tmp_path / name, (8, 9))
    (tmp_path / f"b{name}").write_bytes(b"no picture")
    out, shown = str(tmp_path / "out\n"), "a\\n\\x1b[31merror: none.png"
    arguments = [
        ["encode", str(tmp_path), *EXACT, "--out", out],
        ["decode", out, "--out", str(tmp_path / "back")],
        ["inspect", out],
    ]
    for place, words in enumerate(arguments):
        assert main(words) == (3 if place == 0 else 0)
        said = capsys.readouterr()
        lines = (said.out + said.err).split("\n")
        assert any(shown in line for line in lines)
        assert sum(line.startswith("error: ") for line in lines) == (place == 0)
        assert "\x1b" not in said.out + said.err
        assert not any(line.startswith(("\\x1b", ".mmt")) for line in lines)
    assert names(tmp_path / "back") == [name]


def test_a_folder_s_tokenizers_are_not_all_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for patch in (4, 5, 6, 7, 4):
        codes = build(f"patchify(patch={patch})").encode([torch.rand(3, 9, 9)])
        write_codes(codes, tmp_path / f"{len(names(tmp_path))}.mmt")
    made: list[weakref.ref[Tokenizer]] = []
    alive: list[int] = []

    def counted(spec: str) -> Tokenizer:
        gc.collect()
        alive.append(sum(ref() is not None for ref in made))
        tokenizer = build(spec)
        made.append(weakref.ref(tokenizer))
        return tokenizer

    monkeypatch.setattr(mmtok.tokenizers, "build", counted)
    assert run(capsys, "decode", str(tmp_path), "--out", str(tmp_path / "out"))[0] == 0
    assert len(alive) == 5
    assert max(alive) <= 2


def test_fewer_tokens_of_several_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = build("patchify").encode([torch.rand(3, 20, 20), torch.rand(3, 9, 40)])
    write_codes(codes, tmp_path / "two.mmt")
    code, done, _ = run(capsys, "decode", str(tmp_path / "two.mmt"), "--tokens", "2")
    assert (code, done["items"][0]["tokens"]) == (0, 4)
    assert names(tmp_path) == ["two-0000.png", "two-0001.png", "two.mmt"]


def test_two_files_do_not_become_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = build("patchify").encode([torch.rand(3, 20, 20)])
    files = [str(tmp_path / name) for name in ("a.mmt", "a.png.mmt")]
    for file in files:
        write_codes(codes, file)
    out = ("--out", str(tmp_path / "out"), "--overwrite")
    code, done, err = run(capsys, "decode", *files, *out)
    assert code == 3
    assert [item["path"] for item in done["failed"]] == files[1:]
    assert "has become" in err
    assert names(tmp_path / "out") == ["a.png"]


@pytest.mark.parametrize("name", ["tiny-vq", "tiny-codec", "tiny-flex"])
def test_codes_of_what_ships_decode_by_themselves(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = tmp_path / ("a.wav" if name == "tiny-codec" else "a.png")
    if name == "tiny-codec":
        save_audio(torch.rand(1, 800) - 0.5, 8000, media)
    else:
        photo(media, (32, 32))
    assert run(capsys, "encode", str(media), "--tokenizer", name)[0] == 0
    assert run(capsys, "decode", f"{media}.mmt", "--out", str(tmp_path / "back"))[0] == 0
    assert names(tmp_path / "back") == [media.name]


def test_hostile_specs_of_files_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = build("patchify").encode([torch.rand(3, 9, 9)])
    specs = [
        *("wetok(seed=1.5)", "hf_vq(seed=None)", "hf_vq(family=[])", "wavtokenizer(weights=3)"),
        *(f"titok(seed={10**23})", "wetok(weights='tiny-vq')", "flextok(weights='../tiny-flex')"),
        *("hf_audio(weights='tiny-vq')", f"flextok(quality={10**400})"),
    ]
    for place, spec in enumerate(specs):
        changed = type(codes)(**vars(codes) | {"tokenizer": spec})
        write_codes(changed, tmp_path / f"{place}.mmt")
    code, done, err = run(capsys, "decode", str(tmp_path))
    assert (code, len(done["failed"])) == (2, len(specs))
    assert err.count("\nerror: ") + err.startswith("error: ") == len(specs)


def test_every_line_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sounds = {"a": torch.zeros(1, 800), "b": torch.full((1, 800), torch.nan)}
    for name, sound in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", sound[0].numpy(), 8000, subtype="FLOAT")
    made, out = str(tmp_path), ("--out", str(tmp_path / "out"))
    code, done, err = run(capsys, "encode", made, "--tokenizer", "tiny-codec", *out)
    assert (code, len(done["items"])) == (3, 1)
    assert f"error: {tmp_path / 'b.wav'}: item 0 must hold finite" in err
    code, done, err = run(capsys, "decode", *out[1:], "--tokenizer", "wavtokenizer")
    assert code == 2
    assert done["failed"][0]["error"].startswith(f"{tmp_path / 'out' / 'a.wav.mmt'}: ")
    assert err.count(str(tmp_path / "out" / "a.wav.mmt")) == 1


def test_what_could_not_be_written_is_not_encoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmt_header, "_LENGTHS", {2: ("samples", 1, 700, 99)})
    monkeypatch.setattr(WavTokenizer, "encode_batch", None)  # any call would be a traceback
    save_audio(torch.zeros(1, 800), 8000, tmp_path / "a.wav")
    arguments = (str(tmp_path), "--tokenizer", "tiny-codec", "--max-tokens", "1")
    code, _, err = run(capsys, "encode", *arguments)
    assert code == 2
    assert "a.wav: 800 samples from 1 token, expected at most 799" in err


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_a_tokenizer_too_large_is_one_line(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: WavTokenizer) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(WavTokenizer, "build", full)
    save_audio(torch.zeros(1, 800), 8000, tmp_path / "a.wav")
    code, _, err = run(capsys, command, str(tmp_path / "a.wav"), "--tokenizer", "wavtokenizer")
    assert code == 2
    assert err == "error: wavtokenizer: memory does not suffice for this tokenizer\n"
