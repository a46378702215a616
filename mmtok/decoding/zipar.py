"""ZipAR (arXiv 2412.04062), lossy: rows of an image are decoded as a staggered wavefront.

Row r + 1 starts once row r has `window` codes, and every forward decodes one code of each row
under way, so R rows of C codes take 2C + (R - 2) window forwards instead of R C. A row that starts
early lacks the end of the row before it: for its first code a copy of that row's last known code
stands in, at the place just before the new row, and is never seen again. The first row is decoded
alone, as the second must not start from too little. A code sees what stands before it in reading
order and is known. With a window as wide as a row the result is plain decoding.

The authors' code is ThisisBillhe/ZipAR. It assumes as many rows as columns and inserts into the
cache in reading order; here a mask and true positions do that, and a newline that is known to end
a row stands in for itself. The adaptive window of the later version is not built. Nothing is
bounded: the output is not the model's own, measure quality beside speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmtok.decoding import options as settings
from mmtok.decoding import visual, warp
from mmtok.decoding.prompts import Inputs, check_inputs, check_places, with_mask
from mmtok.decoding.rules import draw
from mmtok.decoding.target import Target
from mmtok.decoding.tree import DraftTree
from mmtok.errors import InputError


@dataclass(frozen=True)
class Zipped:
    """A batch of images as codes.

    Attributes:
        codes: (B, rows, columns) int64, entries of the model's codebook.
        writer: its `pixels` turns codes into pictures, where the model can.
        target_forwards: calls of the model, the prompt's included.
    """

    codes: Tensor
    writer: visual.ImageWriter
    target_forwards: int


@dataclass(frozen=True)
class Feed:
    """One code given to the model.

    Attributes:
        row: the code's own.
        column: the code's own.
        writes: row whose next code its logits give; None where that is known already.
        stands_in: a copy in the place of a code that is not known yet.
    """

    row: int
    column: int
    writes: int | None
    stands_in: bool = False


@dataclass
class Wavefront:
    """Which codes go into the next forward.

    Attributes:
        known: codes known per row.
        fed: codes per row that the model has read.
    """

    rows: int
    width: int
    window: int
    known: list[int] = field(init=False)
    fed: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.known, self.fed = [1] + [0] * (self.rows - 1), [0] * self.rows

    def step(self) -> list[Feed]:
        """The feeds of the next forward, in reading order; none when all codes are known."""
        if min(self.known) == self.width:
            return []
        feeds = []
        for row, (known, fed) in enumerate(zip(self.known, self.fed, strict=True)):
            waiting = row + 1 < self.rows and self.known[row + 1] == 0
            if fed < known:
                last = known == self.width
                writes = (row + 1 if waiting else None) if last else row
                feeds.append(Feed(row, fed, writes))
            if waiting and row > 0 and self.window <= known < self.width:
                feeds.append(Feed(row, self.width - 1, row + 1, stands_in=True))
        for feed in feeds:
            if feed.writes is not None:
                self.known[feed.writes] += 1
            if not feed.stands_in:
                self.fed[feed.row] += 1
        return feeds


def generate_zipar(
    model: Any,
    inputs: Inputs,
    *,
    window: int,
    guidance_scale: float | None = None,
    negative: Inputs | None = None,
    rows: int | None = None,
    columns: int | None = None,
    logits_processor: Sequence[Any] = (),
    seed: int = 0,
    **options: Any,
) -> Zipped:
    """Write one image per prompt, rows side by side.

    Args:
        model: see `image_writer`.
        inputs: what the processor returned for image generation, padded on the left.
        window: codes of a row that must be known before the next row starts.
        guidance_scale: s in z = u + s (c - u) over logits; None or 1: no guidance.
        negative: inputs of the unconditional rows; None: those of the model's family.
        rows: of the grid of codes, for models that write images of any size.
        columns: the same.
        logits_processor: see the prompt's words and the codes known before a place.
        seed: of the first image, seed + i of the i-th.
        options: of `GenerationConfig`, but for lengths and tokens of the text.

    Raises:
        InputError: the window does not fit, or an option is not supported.
    """
    writer = visual.image_writer(model, rows=rows, columns=columns)
    if not 1 <= window <= writer.width:
        raise InputError(f"zipar: window must be in 1 .. {writer.width} (a row), got {window!r}")
    full = with_mask(inputs)
    length = writer.rows * writer.width
    merged = visual.options(options) | {"max_new_tokens": length}
    config = settings.settings(writer, None, merged, full["input_ids"].shape[1])
    check_inputs(writer, full)
    check_places(writer, full, length)
    target = Target(writer, guidance_scale=settings.guidance(guidance_scale, config))
    if negative is not None and not target.guided:
        raise InputError(
            "negative prompts are for guidance: pass guidance_scale=, or leave them out"
        )
    logits = target.prefill(full, writer.negative(full) if negative is None else negative)
    given = settings.for_prompts(logits_processor)
    images = []
    for i, (ids, mask) in enumerate(zip(full["input_ids"], full["attention_mask"], strict=True)):
        prompt = ids[mask.bool()].tolist()
        extra = [*given(len(prompt)), *writer.processors(len(prompt))]
        warpers = settings.processors(writer, config, prompt, extra)
        generator = torch.Generator().manual_seed(seed + i)
        images.append(_Image(writer, prompt, warpers, generator, bool(config.do_sample)))
    for image, z in zip(images, logits, strict=True):
        image.write(0, z)
    _decode(target, writer, images, window)
    codes = torch.stack([image.codes for image in images])
    return Zipped(writer.grid(codes.flatten(1)), writer, target.forwards)


@dataclass
class _Image:
    writer: visual.ImageWriter
    prompt: list[int]
    warpers: warp.Processors
    generator: torch.Generator
    sample: bool

    def __post_init__(self) -> None:
        self.codes = torch.full((self.writer.rows, self.writer.width), -1)

    def write(self, row: int, logits: Tensor) -> None:
        """Choose the next code of a row. What stands before it counts as its text, gaps filled."""
        column = int((self.codes[row] >= 0).sum())
        before = self.codes.flatten()[: row * self.writer.width + column].clamp(min=0).tolist()
        ids = [*self.prompt, *before]
        p = warp.rows(logits[None], DraftTree.root(ids[-1]), ids, self.warpers, self.sample)(0)
        u = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        self.codes[row, column] = draw(p, u)

    def read(self, feed: Feed) -> int:
        """The code of a feed; where it is not known, what stands in."""
        if not feed.stands_in:
            return int(self.codes[feed.row, feed.column])
        if self.writer.newline is not None:
            return self.writer.newline
        return int(self.codes[feed.row][self.codes[feed.row] >= 0][-1])


def _decode(target: Target, writer: visual.ImageWriter, images: list[_Image], window: int) -> None:
    front = Wavefront(writer.rows, writer.width, window)
    held = torch.zeros(0, dtype=torch.long)  # places of the cached codes, in the cache's order
    while feeds := front.step():
        places = torch.tensor([f.row * writer.width + f.column for f in feeds])
        stands_in = torch.tensor([f.stands_in for f in feeds])
        all_places = torch.cat([held, places.masked_fill(stands_in, writer.rows * writer.width)])
        sees = all_places <= places[:, None]
        sees[:, len(held) :] |= torch.eye(len(feeds), dtype=torch.bool)
        tokens = torch.tensor([[image.read(f) for f in feeds] for image in images])
        count = len(images)
        logits = target.extend(tokens, places.expand(count, -1), sees.expand(count, *sees.shape))
        for at, feed in enumerate(feeds):
            if feed.writes is not None:
                for image, z in zip(images, logits[:, at], strict=True):
                    image.write(feed.writes, z)
        held = all_places
