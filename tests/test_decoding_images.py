"""Images written with drafts are those of the model's own generation, code by code."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from mmtok.decoding import drafter_registry, generate_images, image_writer
from mmtok.decoding.drafters.bild import BiLD
from mmtok.decoding.drafters.draftmodel import DraftModel
from mmtok.decoding.drafters.dyspec import DySpec
from mmtok.decoding.drafters.jacobi import Jacobi
from mmtok.decoding.drafters.rsdc import RSDC
from mmtok.decoding.drafters.rsds import RSDS
from mmtok.decoding.drafters.s2d import S2D
from mmtok.decoding.drafters.spectr import SpecTr
from mmtok.decoding.lossy import neighbours
from mmtok.decoding.verifiers.lantern import Lantern
from mmtok.errors import InputError
from tests.decoders import llama, prompts
from tests.writers import CODES, GRID, MODELS, emu3, image_prompts, janus, stock_codes

SIZE: dict[str, dict[str, int]] = {
    "janus": {},
    "chameleon": {},
    "emu3": {"rows": GRID[0], "columns": GRID[1]},
}
DRAFTERS: dict[str, Any] = {
    "lookup": lambda name: "lookup(ngram=1)",
    "recycling": lambda name: "recycling",
    "rasd": lambda name: "rasd",
    "aded": lambda name: "aded",
    "earlyexit": lambda name: "earlyexit",
    "dynamicexit": lambda name: "dynamicexit(tokens=2)",
    "jacobi": lambda name: Jacobi(window=4),
    "draftmodel": lambda name: DraftModel(model=small(name)),
    "rsds": lambda name: RSDS(model=small(name)),
    "rsdc": lambda name: RSDC(model=small(name)),
    "dyspec": lambda name: DySpec(model=small(name), budget=3),
    "spectr": lambda name: SpecTr(model=small(name)),
    "bild": lambda name: BiLD(model=small(name), fallback=0.0, tokens=3),
    "s2d": lambda name: S2D(model=small(name), exits=(1,), threshold=0.1),
}


def small(name: str) -> Any:
    """A draft model: another one of the family."""
    return image_writer(MODELS[name](1), **SIZE[name])


@cache
def wanted(name: str, rows: tuple[int, ...], scale: float) -> torch.Tensor:
    writer = image_writer(MODELS[name](), **SIZE[name])
    return writer.grid(torch.tensor([stock_codes(name, row, scale) for row in rows]))


@pytest.mark.parametrize("drafter", drafter_registry.names())
@pytest.mark.parametrize("name", MODELS)
def test_guided_images_are_those_of_the_models_own_generation(name: str, drafter: str) -> None:
    for rows in ((0,), (0, 1)):
        got = generate_images(
            MODELS[name](),
            image_prompts(rows),
            drafter=DRAFTERS[drafter](name),
            guidance_scale=3.0,
            do_sample=False,
            **SIZE[name],
        )
        want = wanted(name, rows, 3.0)
        assert torch.equal(got.codes, want)
        assert want.unique().numel() > 3
        assert got.stats.target_forwards <= want[0].numel() + want.shape[1]


@pytest.mark.parametrize("drafter", drafter_registry.names())
@pytest.mark.parametrize("name", MODELS)
def test_images_without_guidance(name: str, drafter: str) -> None:
    got = generate_images(
        MODELS[name](),
        image_prompts(),
        drafter=DRAFTERS[drafter](name),
        do_sample=False,
        **SIZE[name],
    )
    assert torch.equal(got.codes, wanted(name, (0, 1), 1.0))


def test_negative_prompts_of_ones_own() -> None:
    inputs = image_prompts((0,))
    ids, other = inputs["input_ids"], torch.tensor([[1, 33, 5]])
    got = generate_images(
        emu3(),
        inputs,
        drafter="recycling",
        guidance_scale=2.0,
        negative={"input_ids": other},
        do_sample=False,
        rows=1,
        columns=5,
    )
    out: list[int] = []
    for _ in range(5):
        new = torch.tensor([[10 + code for code in out]], dtype=torch.long)
        z, u = (emu3()(torch.cat([x, new], 1)).logits[0, -1, 10:34] for x in (ids, other))
        out.append(int((u + 2 * (z - u)).argmax()))
    assert got.codes.tolist() == [[out]]


def test_sampled_images_hold_codes_only_and_rows_are_their_own() -> None:
    lantern = Lantern(near=neighbours(torch.randn(CODES, 3), 5), delta=0.3)
    options: dict[str, Any] = {"do_sample": True, "top_k": 8, "guidance_scale": 2.0}
    for verifier in (None, lantern):
        both = generate_images(
            janus(), image_prompts(), drafter=Jacobi(window=4), verifier=verifier, **options
        )
        assert both.codes.shape == (2, 4, 4)
        assert both.codes.max() < CODES
        assert both.stats.lossless == (verifier is None)
        alone = generate_images(
            janus(),
            image_prompts((1,)),
            drafter=Jacobi(window=4),
            verifier=verifier,
            seed=1,
            **options,
        )
        assert torch.equal(both.codes[1:], alone.codes)


def test_codes_become_pixels_where_the_model_has_a_decoder() -> None:
    options: dict[str, Any] = {"drafter": "lookup", "do_sample": False}
    made = generate_images(janus(), image_prompts(), **options)
    assert made.writer.pixels(made.codes).shape == (2, 8, 8, 3)
    made = generate_images(emu3(), image_prompts(), rows=4, columns=4, **options)
    assert made.writer.pixels(made.codes).shape[0] == 2
    made = generate_images(MODELS["chameleon"](), image_prompts(), **options)
    with pytest.raises(InputError, match="no image decoder"):
        made.writer.pixels(made.codes)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (emu3, {}, "pass rows= and columns="),
        (emu3, {"rows": 0, "columns": 3}, "at least one row"),
        (janus, {"rows": 3}, "4 x 4"),
        (janus, {"eos_token_id": 2}, "no use for eos_token_id"),
        (llama, {}, "not known to write images"),
        (janus, {"drafter": DraftModel(model=llama(vocabulary=40))}, "has 40 tokens"),
    ],
)
def test_what_cannot_be_written_is_refused(
    model: Any, options: dict[str, Any], message: str
) -> None:
    known = {"drafter": "lookup", "do_sample": False} | options
    with pytest.raises(InputError, match=message):
        generate_images(model(), prompts([5]), **known)
