"""Odd configurations, file names, outputs and encoders: one clear line, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmtok import InputError, load_encoder
from mmtok.cli import demo
from mmtok.cli.app import main
from mmtok.cli.output import spoken
from mmtok.io.files import replacing, user_path
from mmtok.io.overlay import save_picture
from mmtok.models.dummy import FAMILIES, tiny_config
from mmtok.models.load import load_config, published_config, shipped_names
from mmtok.models.zoo import embedded_names, folder_of

LONG = "x" * 304
RUN = ("--text", "what?", "--model", "llava", "--dummy", "--max-new-tokens", "1", "--no-count")
VIT = "timm:vit_tiny_patch16_224"


@pytest.fixture
def photo(tmp_path) -> Path:
    file = tmp_path / "own.jpg"
    Image.new("RGB", (50, 40), "red").save(file)
    return file


def llava(part: str = "", **changed: Any) -> str:
    """The text of a small llava's config.json, with fields of one part replaced."""
    fields = tiny_config("llava").to_dict()
    (fields[part] if part else fields).update(changed)
    return json.dumps(fields)


CONFIGS = [
    (
        llava("text_config", hidden_size="64"),
        "'64'",
    ),
    (llava("text_config", hidden_size=float("nan")), "hidden_size"),
    (llava(text_config=[1]), "Field 'text_config'"),
    (llava(text_config={"model_type": "doesnotexist"}), "doesnotexist"),
    (llava("text_config", hidden_size=-4), "text_config.hidden_size must be at least 1, got -4"),
    (llava("text_config", num_hidden_layers=0), "text_config.num_hidden_layers"),
    (llava("vision_config", patch_size=0), "vision_config.patch_size must be at least 1, got 0"),
    ("[" * 100_000, "recursion"),
    (llava("text_config", num_attention_heads=0), "text_config.num_attention_heads"),
    ('{"model_type": "llava", "a": ' * 700 + "1" + "}" * 700, "recursion"),
    ("\ud800", "not a model's config.json"),
    ("", "is empty"),
]


@pytest.mark.parametrize(("text", "said"), CONFIGS, ids=range(len(CONFIGS)))
def test_malformed_configurations(text, said, tmp_path, photo, refused):
    file = tmp_path / "config.json"
    file.write_bytes(text.encode(errors="surrogatepass"))
    for arguments in (("plan", file), ("run", photo, *RUN, "--model", file)):
        line = refused(*arguments)
        assert str(file) in line
        assert said in line


def test_a_model_beyond_all_memory(tmp_path, photo, refused):
    file = tmp_path / "config.json"
    file.write_text(llava("text_config", hidden_size=10**8))
    assert "memory does not suffice" in refused("run", photo, *RUN, "--model", file)


@pytest.mark.parametrize(("text", "said"), CONFIGS[:8], ids=range(8))
def test_malformed_configurations_beside_weights(text, said, tmp_path):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=said):
        published_config(str(tmp_path))


@pytest.mark.parametrize("name", [*FAMILIES, *shipped_names(), *embedded_names()])
def test_real_configurations_are_taken(name, tmp_path):
    config = load_config(name)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    assert load_config(str(file)).model_type == config.model_type


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", LONG, "--tokenizer", "patchify(patch=4)"),
        ("encode", "own.jpg", "--tokenizer", "patchify(patch=4)", "--out", LONG),
        ("encode", "own.jpg", "--tokenizer", f"karl(weights='{LONG}')"),
        ("decode", LONG),
        ("inspect", LONG),
        ("preprocess", LONG, "--out", "o"),
        ("plan", LONG),
        ("run", "own.jpg", *RUN, "--model", LONG),
        ("run", "own.jpg", "--text", "what?", "--model", LONG),
        ("run", LONG, *RUN),
        ("run", "own.jpg", *RUN, "--overlay", "x" * 252 + ".png"),
        ("generate", "--class", "sneaker", "--out", "x" * 252 + ".png"),
        ("generate", "--class", "sneaker", "--out", "o.png", "--model", LONG),
        ("demo", "--dummy", "--model", LONG, "--out", "."),
        ("demo", "--out", LONG),
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG")[:60],
)
def test_names_too_long(arguments, photo, refused, monkeypatch):
    monkeypatch.chdir(photo.parent)
    assert "xxxx" in refused(*arguments)


@pytest.mark.parametrize("length", [252, 255])
def test_every_legal_name_is_written(length, photo, capsys):
    overlay = photo.with_name("x" * (length - 4) + ".png")
    assert main(["run", str(photo), *RUN, "--overlay", str(overlay)]) == 0
    assert sorted(photo.parent.iterdir()) == [photo, overlay]
    suffix = photo.with_name("x." + "y" * (length - 2))
    with replacing(suffix) as beside:
        beside.touch()
    assert suffix.exists()


def test_homes_of_nobody_are_no_bugs():
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert user_path("~") == Path.home()
    with pytest.raises(InputError, match="cannot be the name"):
        folder_of(LONG)


def test_a_failed_write_tells_of_itself(tmp_path):
    (file := tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), replacing(file / "x.png") as beside:
        beside.touch()
    with pytest.raises(InputError, match="no such folder"):
        save_picture(Image.new("RGB", (4, 4)), file / "x.png")


def test_an_overlay_never_replaces_the_photograph(photo, refused):
    link, hard = photo.with_name("link.jpg"), photo.with_name("hard.jpg")
    link.symlink_to(photo)
    hard.hardlink_to(photo)
    for overlay in (photo, link, hard, photo.parent / "." / ".." / photo.parent.name / "own.jpg"):
        assert "is the input" in refused("run", photo, *RUN, "--overlay", overlay)


def test_codes_never_replace_what_they_are_made_of(photo, refused, capsys):
    tokenizer = ("--tokenizer", "patchify(patch=4)")
    picture = photo.with_name("own.mmt")
    picture.write_bytes(photo.read_bytes())
    line = refused("encode", picture, *tokenizer, "--out", picture, "--overwrite")
    assert "is the input" in line
    second = photo.with_name("own.jpg.mmt")
    second.write_bytes(photo.read_bytes())
    assert "is the input" in refused("encode", photo, second, *tokenizer, "--overwrite")
    codes = photo.with_name("codes.png")
    assert main(["encode", str(photo), *tokenizer, "--out", str(photo.parent / "c.mmt")]) == 0
    photo.with_name("c.mmt").rename(codes)
    link = photo.with_name("codes.mmt")
    link.symlink_to(codes)
    held = codes.read_bytes()
    for file in (codes, link):
        assert main(["decode", str(file), "--overwrite"]) == 2
        assert "is the input" in capsys.readouterr().err
        assert codes.read_bytes() == held
    bare = codes.rename(photo.with_name("codes"))
    assert main(["decode", str(bare)]) == 0
    assert photo.with_name("codes.png").exists()


def encoder(**options: Any) -> Any:
    return load_encoder(VIT, depth=1, **{"img_size": 64, **options})


def test_a_network_before_the_patches_counts_in_their_size():
    made = load_encoder("timm:vit_tiny_r_s16_p8_224", depth=1)
    tokens = made(torch.zeros(1, 3, 224, 224))
    assert made.patch_size == (32, 32)
    assert tokens.grid.tolist() == [[1, 7, 7]]
    assert tokens.features.shape[1] == 49


def test_dynamic_sizes():
    made = encoder(dynamic_img_size=True)
    assert made(torch.zeros(1, 3, 96, 48)).grid.tolist() == [[1, 6, 3]]
    for side in (100, 0):
        with pytest.raises(InputError, match=r"multiples of \(16, 16\) pixels, got"):
            made(torch.zeros(1, 3, 96, side))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (None, {}, "name must be a string, got None"),
        (VIT, {"seed": -1}, "seed must be"),
        (VIT, {"pretrained": 3}, "pretrained must be"),
        (VIT, {"foo": 1}, "cannot be made with foo: .*unexpected keyword"),
        (VIT, {"img_size": "a", "depth": 1}, "cannot be made with img_size, depth"),
        (VIT, {"dynamic_img_pad": True, "depth": 1}, "dynamic_img_size alone"),
        ("timm:xcit_nano_12_p16_224", {}, "not a plain vision transformer"),
        ("timm:cait_xxs24_224", {}, "does not run fused"),
        ("open_clip:ViT-B-32", {"foo": 1}, "cannot be made with foo"),
    ],
)
def test_encoders_that_cannot_be(name, options, said):
    with pytest.raises(InputError, match=said):
        load_encoder(name, **options)


@pytest.mark.parametrize("given", ["a.jpg", np.zeros((8, 8, 3)), None, ["a.jpg"], b"x", Path("a")])
def test_what_is_no_picture(given):
    with pytest.raises(InputError, match="takes PIL images"):
        encoder()(given)


def test_no_pixels():
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        encoder()(torch.zeros(0, 3, 64, 64))


def test_empty_answers_are_seen(photo):
    shown = demo.Shown(
        demo.Sample(photo, [("what?", "shoe")]), [], [], [dict.fromkeys(demo.SPECS, " ")], {}
    )
    assert demo._answers(shown).count("(empty)") == len(demo.SPECS)
    assert shown.to_dict()["questions"][0]["answers"] == dict.fromkeys(demo.SPECS, " ")
    assert [spoken(text) for text in ("", "\n", " a ")] == ["(empty)", "(empty)", " a "]
