"""What every registered tokenizer has to hold; one row each in `TOKENIZERS` of tests/matrix.py."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from mmtok.codes import Codes, check_shape
from mmtok.errors import InputError
from mmtok.io.mmt import read_codes, write_codes
from mmtok.models import zoo
from mmtok.tokenizers import Tokenizer, build, registry
from mmtok.tokenizers.digest import digest
from tests.matrix import TOKENIZERS

ROWS = [
    pytest.param(spec, shapes, id=spec) for specs, shapes in TOKENIZERS.values() for spec in specs
]


@cache
def made(spec: str) -> Tokenizer:
    return build(spec)


@cache
def media(shapes: tuple[tuple[int, ...], ...]) -> list[torch.Tensor]:
    """Smooth items with some noise; recordings centred at 0."""
    items = []
    for seed, shape in enumerate(shapes):
        generator = torch.Generator().manual_seed(seed)
        wave = torch.sin(torch.linspace(0, 9, shape[-1]) + torch.arange(shape[0]).view(-1, 1))
        wave = wave.reshape(shape[0], *(1,) * (len(shape) - 2), shape[-1])
        item = 0.4 * wave + 0.1 * torch.randn(shape, generator=generator)
        items.append(item if len(shape) == 2 else (item + 0.5).clamp(0, 1))
    return items


def assert_same(got: Codes, want: Codes) -> None:
    assert got.counts == want.counts
    assert all(torch.equal(a, b) for a, b in zip(got.ids, want.ids, strict=True))
    assert (got.shapes, got.grids, got.codebook) == (want.shapes, want.grids, want.codebook)


def test_every_tokenizer_has_a_row() -> None:
    assert set(TOKENIZERS) == set(registry.names())


@pytest.mark.parametrize(("spec", "shapes"), ROWS)
def test_codes_say_what_a_decoder_needs(spec: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Deterministic; ids inside the codebook; the spec builds the same tokenizer again."""
    tokenizer = made(spec)
    codes = tokenizer.encode(media(shapes))
    assert_same(codes, tokenizer.encode(media(shapes)))
    assert codes.shapes == list(shapes)
    full = [torch.Size(grid).numel() for grid in codes.grids]
    counts = codes.counts
    assert (
        all(k <= n for k, n in zip(counts, full, strict=True))
        if tokenizer.adaptive
        else (counts == full)
    )
    if tokenizer.max_tokens is not None:
        assert max(codes.counts) <= tokenizer.max_tokens
    again = build(tokenizer.spec)
    assert again.tokenizer_hash == codes.tokenizer_hash == tokenizer.tokenizer_hash
    assert_same(again.encode(media(shapes)), codes)
    kinds = {check_shape(shape) for shape in shapes}
    assert kinds == set(tokenizer.modalities)
    assert all(getattr(tokenizer.taxonomy, name) != "" for name in tokenizer.taxonomy.__slots__)


@pytest.mark.parametrize(("spec", "shapes"), ROWS)
def test_decoding_restores_the_shape(spec: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    tokenizer = made(spec)
    got = tokenizer.decode(tokenizer.encode(media(shapes)))
    assert [tuple(item.shape) for item in got] == list(shapes)
    assert all(bool(torch.isfinite(item).all()) for item in got)
    low = -1 if tokenizer.modalities == ("audio",) else 0
    assert all(low <= float(item.min()) and float(item.max()) <= 1 for item in got)


@pytest.mark.parametrize(("spec", "shapes"), ROWS)
def test_a_batch_gives_what_its_items_give(spec: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    tokenizer, items = made(spec), media(shapes)
    codes = tokenizer.encode(items)
    for place, item in enumerate(items):
        assert_same(tokenizer.encode([item]), codes.item(place))
        assert torch.equal(tokenizer.decode(codes.item(place))[0], tokenizer.decode(codes)[place])
    twice = [item for item in items for _ in range(2)]
    together = tokenizer.encode(twice, batch_size=8)
    for place in range(len(items)):
        assert_same(together.item(2 * place), codes.item(place))


@pytest.mark.parametrize(("spec", "shapes"), ROWS)
def test_the_container_gives_the_codes_back(
    spec: str, shapes: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    tokenizer = made(spec)
    codes = tokenizer.encode(media(shapes))
    size = write_codes(codes, tmp_path / "codes.mmt")
    assert size <= codes.bits / 8 * 1.005 + 1000
    got = read_codes(tmp_path / "codes.mmt")
    assert_same(got, codes)
    for a, b in zip(tokenizer.decode(got), tokenizer.decode(codes), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("spec", "shapes"), ROWS)
def test_trimmed_codes_are_valid(
    spec: str, shapes: tuple[tuple[int, ...], ...], tmp_path: Path
) -> None:
    tokenizer = made(spec)
    codes = tokenizer.encode(media(shapes))
    for k in (1, 2, max(codes.counts)):
        short = tokenizer.trim(codes, k)
        assert_same(short, tokenizer.encode(media(shapes), max_tokens=k))
        assert short.counts == [min(k, count) for count in codes.counts]
        got = tokenizer.decode(short)
        assert [tuple(item.shape) for item in got] == list(shapes)
        assert all(bool(torch.isfinite(item).all()) for item in got)
        write_codes(codes, tmp_path / "codes.mmt")
        assert_same(read_codes(tmp_path / "codes.mmt", tokens=k), short.item(0))
    with pytest.raises(InputError, match="at least 1"):
        tokenizer.trim(codes, 0)


@pytest.mark.parametrize(("spec", "shapes"), ROWS)
def test_the_future_does_not_change_the_past(
    spec: str, shapes: tuple[tuple[int, ...], ...]
) -> None:
    """Causal ones: the codes of a beginning are the beginning of the codes, in streams as well."""
    tokenizer = made(spec)
    for item in media(shapes):
        if not tokenizer.causal or item.ndim == 3:
            continue
        time = 0 if item.ndim == 4 else 1
        whole = tokenizer.encode([item]).ids[0]
        step = tokenizer.time_stride
        for length in range(tokenizer.time_start, item.shape[time] + 1, step):
            ids = tokenizer.encode([item.narrow(time, 0, length)]).ids[0]
            assert len(ids)
            assert torch.equal(ids, whole[: len(ids)])
        for size in (1, 3, item.shape[time]):
            stream = tokenizer.encoder_state()
            parts = [stream.push(chunk) for chunk in item.split(size, dim=time)]
            assert torch.equal(torch.cat([*parts, stream.finish()]), whole)


@pytest.mark.parametrize(("spec", "shapes"), ROWS)
def test_bad_input_is_refused_in_one_line(spec: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    tokenizer, item = made(spec), media(shapes)[0]
    codes = tokenizer.encode([item])
    nan = item.clone()
    nan.view(-1)[0] = float("nan")
    for bad in ([nan], [(item * 255).to(torch.uint8)], item, [item[None, None]], [item[..., :0]]):
        with pytest.raises(InputError):
            tokenizer.encode(bad)
    with pytest.raises(InputError, match="were made by"):
        tokenizer.decode(Codes(**vars(codes) | {"tokenizer_hash": "0" * 64}))
    with pytest.raises(InputError):
        tokenizer.decode(Codes(**vars(codes) | {"ids": [codes.ids[0][:0]]}))
    with pytest.raises(InputError):
        tokenizer.decode(Codes(**vars(codes) | {"grids": [(len(codes.ids[0]) + 1,)]}))
    if not tokenizer.taxonomy.streamable:
        with pytest.raises(InputError, match="does not stream"):
            tokenizer.encoder_state()


@pytest.mark.parametrize("spec", ["tiny-vq", "hf_vq(family='janus')", "hf_vq(family='chameleon')"])
def test_pictures_of_a_single_token(spec: str) -> None:
    """Group norms of stock networks meet a single value there."""
    tokenizer = build(spec)
    for side in (1, 2):
        codes = tokenizer.encode([torch.rand(3, side, side)])
        assert codes.counts == [1]
        if "chameleon" not in spec:
            made = tokenizer.decode(codes)[0]
            assert made.shape == (3, side, side)
            assert bool(torch.isfinite(made).all())


def test_settings_and_weights_decide_the_hash() -> None:
    a, b = torch.zeros(2), torch.zeros(2, dtype=torch.float64)
    made = {digest({}, {"w": a}), digest({}, {"w": b}), digest({}, {"v": a}), digest({"x": 1}, {})}
    made |= {digest({}, {"w": a + 1}), digest({}, {"w": a[None]}), digest({}, {})}
    assert len(made) == 7
    assert build("patchify(patch=2)").tokenizer_hash != build("patchify").tokenizer_hash


def test_weights_that_ship_are_found_by_name(tmp_path, monkeypatch):
    made = build("flextok(seed=3)")
    made.save(tmp_path / "little")
    config = tmp_path / "little" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tokenizer": "flextok"}))
    monkeypatch.setattr(zoo, "DATA", tmp_path)
    monkeypatch.setattr(zoo, "_configs", zoo._configs.__wrapped__)
    found = build("little")
    _ = found.network
    assert found.tokenizer_hash != build("flextok").tokenizer_hash
    torch.testing.assert_close(dict(found.state()), dict(made.state()))
