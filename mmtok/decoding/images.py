"""Images written with drafts: `generate` over the codes of a visual autoregressive model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmtok.decoding import visual
from mmtok.decoding.base import Drafter, Verifier
from mmtok.decoding.entry import generate
from mmtok.decoding.options import for_prompts
from mmtok.decoding.prompts import Inputs
from mmtok.decoding.stats import Stats


@dataclass(frozen=True)
class Images:
    """A batch of images as codes.

    Attributes:
        codes: (B, rows, columns) int64, entries of the model's codebook.
        writer: its `pixels` turns codes into pictures, where the model can.
        stats: what it took.
    """

    codes: Tensor
    writer: visual.ImageWriter
    stats: Stats


def generate_images(
    model: Any,
    inputs: Inputs,
    *,
    drafter: str | Drafter,
    verifier: str | Verifier | None = None,
    guidance_scale: float | None = None,
    negative: Inputs | None = None,
    rows: int | None = None,
    columns: int | None = None,
    logits_processor: Sequence[Any] = (),
    seed: int | Sequence[int] = 0,
    measure_tv: bool = False,
    **options: Any,
) -> Images:
    """Write one image per prompt; an exact verifier gives what decoding without drafts gives.

    Args:
        model: see `image_writer`, or one it made.
        inputs: what the processor returned for image generation, padded on the left.
        drafter: as in `generate`. A draft model is an `image_writer` too.
        verifier: as in `generate`; codes of LANTERN and GSD are those of the codebook.
        guidance_scale: s in z = u + s (c - u) over logits; None or 1: no guidance.
        negative: inputs of the unconditional rows; None: those of the model's family.
        rows: of the grid of codes, for models that write images of any size.
        columns: the same.
        logits_processor: as in `generate`; ids are the prompt's words, then codes.
        seed: as in `generate`.
        measure_tv: as in `generate`.
        options: of `GenerationConfig`, but for lengths and tokens of the text.

    Raises:
        InputError: a combination that would be wrong or is not supported.
    """
    writer = visual.image_writer(model, rows=rows, columns=columns)
    length = writer.rows * writer.width
    extra = for_prompts(logits_processor)
    made = generate(
        writer,
        inputs,
        drafter=drafter,
        verifier=verifier,
        guidance_scale=guidance_scale,
        negative=writer.negative if negative is None else negative,
        logits_processor=lambda prompt: [*extra(prompt), *writer.processors(prompt)],
        seed=seed,
        measure_tv=measure_tv,
        **(visual.options(options) | {"max_new_tokens": length}),
    )
    return Images(writer.grid(made.sequences[:, -length:]), writer, made.stats)
