"""What tokenizers refuse: options of other types, values out of range, streams of bad pieces."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from mmtok.errors import InputError
from mmtok.tokenizers import CViViT, build


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("wetok(seed=1.5)", "wetok: seed must be an int, got 1.5"),
        ("wetok(generative=1)", "generative must be True or False"),
        ("titok(seed=10**23)", "cannot read spec"),
        (f"titok(seed={10**23})", "titok: seed must be 0 to 2\\^63 - 1"),
        ("cvivit(seed=-1)", "cvivit: seed must be 0 to"),
        ("hf_vq(seed=None)", "hf_vq: seed must be an int, got None"),
        ("hf_vq(family=[])", "hf_vq: family must be a string, got \\[\\]"),
        ("hf_audio(codebooks=True)", "hf_audio: codebooks must be an int or None, got True"),
        ("wavtokenizer(weights=3)", "wavtokenizer: weights must be a string or None, got 3"),
        ("xcodec2(seed='1')", "xcodec2: seed must be"),
        ("karl(error=True)", "karl: error must be a finite number, got True"),
        ("alit(error=1e999)", "alit: error must be a finite number, got inf"),
        ("flextok(quality=[])", "flextok: quality must be"),
        ("patchify(patch=True)", "patchify: patch must be an int"),
    ],
)
def test_options_of_other_types_are_refused(spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(spec)


def test_values_out_of_range_are_refused() -> None:
    tokenizer, picture = build("patchify"), torch.rand(3, 8, 8)
    for bad, said in (
        (picture * 255, "item 0 reaches 2.*, expected values in \\[0, 1\\]"),
        (picture.double() * 1e300, "finite"),
        (picture * float("nan"), "finite"),
        (picture - float("inf"), "finite"),
        (torch.ones(3, 8, 8, dtype=torch.int64), "floating point"),
    ):
        with pytest.raises(InputError, match=said):
            tokenizer.encode([bad])
    loud = torch.tensor([[1.2, -1.3] * 400])
    assert build("wavtokenizer").encode([loud]).counts[0] > 0
    assert tokenizer.encode([picture.half(), picture.double()]).counts == [1, 1]


@pytest.mark.parametrize("spec", ["patchify", "cvivit"])
def test_streams_check_every_piece(spec: str) -> None:
    tokenizer, piece = build(spec), torch.rand(2, 3, 16, 16)
    stream = tokenizer.encoder_state()
    parts = [stream.push(piece)]
    for bad in (
        piece * float("nan"),
        piece * 255,
        (piece * 255).byte(),
        piece[:, :1],
        piece[0],
        piece[..., :8],
        piece[:0, :1],
        [piece],
    ):
        with pytest.raises(InputError):
            stream.push(bad)
    parts += [stream.push(piece.double()), stream.finish()]
    whole = tokenizer.encode([torch.cat([piece, piece])]).ids[0]
    assert torch.equal(torch.cat(parts), whole)
    with pytest.raises(InputError, match="has ended"):
        stream.push(piece)


def claim(folder: Path, name: str) -> None:
    """Save a network whose configuration asks for 2^20 of something."""
    CViViT().save(folder)
    file = folder / "config.json"
    said = json.loads(file.read_text())
    said["mmtok"][name] = 2**20
    file.write_text(json.dumps(said))


def test_sizes_that_the_weights_do_not_have_are_not_allocated(tmp_path: Path) -> None:
    claim(tmp_path, "width")
    with pytest.raises(InputError, match="weights of wrong shape"):
        CViViT(weights=str(tmp_path)).to("cpu")


def test_layers_that_the_weights_do_not_have_are_not_built(tmp_path: Path) -> None:
    claim(tmp_path, "spatial")
    began = time.process_time()
    with pytest.raises(InputError, match="asks for more weights than there are"):
        CViViT(weights=str(tmp_path)).to("cpu")
    assert time.process_time() - began < 5
    CViViT().to("cpu")  # and nothing is counted from now on


def test_the_second_stage_is_not_silently_the_first() -> None:
    with pytest.raises(InputError, match="generative goes with ratio"):
        build("wetok(weights='some', generative=True)")
    build("wetok(weights='some', generative=True, ratio=48)")
