"""Scenes: garments and a printed number on a textured background.

A `Scene` is a full description; `render` draws it and `sample_scene` invents one. The same scene
always renders to the same pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmtok.training.garments import KINDS, Garments

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
"""The nameable colours."""
_RGB = np.array(
    [
        (215, 30, 35),
        (245, 130, 20),
        (245, 230, 50),
        (40, 170, 50),
        (40, 90, 230),
        (165, 60, 200),
        (245, 245, 245),
    ],
    dtype=np.float32,
)
CANVAS = 112
PATCH = 8


@dataclass(frozen=True)
class Item:
    """One garment: its kind, colour, photograph, centre (x, y) in pixels, zoom and rotation."""

    kind: int
    colour: int
    photo: int
    x: float
    y: float
    zoom: float
    angle: float
    half_width: float
    half_height: float

    def moved(self, dx: float, dy: float) -> Item:
        """The same garment `dx`, `dy` pixels further right and down."""
        return replace(self, x=self.x + dx, y=self.y + dy)


@dataclass(frozen=True)
class Number:
    """A printed label: its digits, the centre of the label and the distance between digits."""

    digits: str
    x: float
    y: float
    pitch: float
    height: int
    dark: bool

    @property
    def half_width(self) -> float:
        """Half the width of the label in pixels."""
        return self.pitch * len(self.digits) / 2 + 2

    @property
    def half_height(self) -> float:
        """Half the height of the label in pixels."""
        return self.height / 2 + 3

    def centres(self) -> list[tuple[float, float]]:
        """Centre of each digit, left to right."""
        first = self.x - self.pitch * (len(self.digits) - 1) / 2
        return [(first + i * self.pitch, self.y) for i in range(len(self.digits))]


_Thing = TypeVar("_Thing", Item, Number)


@dataclass(frozen=True)
class Scene:
    """What is to be seen: garments, perhaps a number, and the seed of background and shapes."""

    items: tuple[Item, ...]
    number: Number | None
    seed: int
    size: int = CANVAS
    shapes: int = 2

    def count(self, kind: int) -> int:
        """How many garments of `kind` there are."""
        return sum(item.kind == kind for item in self.items)


def make_item(rng: Generator, garments: Garments, kind: int, colour: int | None = None) -> Item:
    """A garment of `kind` with random photograph, colour, zoom and rotation, centred at (0, 0)."""
    photo = int(rng.choice(garments.by_kind[kind]))
    zoom = float(rng.uniform(0.95, 1.3))
    angle = float(rng.uniform(-20, 20))
    left, top, right, bottom = garments.boxes[photo]
    width, height = (right - left) * zoom, (bottom - top) * zoom
    c, s = abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle)))
    tint = int(rng.integers(len(COLOURS))) if colour is None else colour
    half_width, half_height = (width * c + height * s) / 2, (width * s + height * c) / 2
    return Item(kind, tint, photo, 0.0, 0.0, zoom, angle, float(half_width), float(half_height))


def sample_number(rng: Generator) -> Number:
    """A number of two or three digits, centred at (0, 0)."""
    length = int(rng.integers(2, 4))
    digits = str(rng.integers(1, 10)) + "".join(map(str, rng.integers(0, 10, length - 1)))
    height = int(rng.integers(15, 21))
    pitch = float(height * rng.uniform(0.68, 0.8))
    return Number(digits, 0.0, 0.0, pitch, height, bool(rng.random() < 0.5))


def place(
    rng: Generator, thing: _Thing, taken: Sequence[Item | Number], size: int, tries: int = 30
) -> _Thing | None:
    """Move `thing` to a free spot (boxes may overlap by 2 pixels), or None if none is found."""
    w, h = thing.half_width, thing.half_height
    if 2 * max(w, h) > size:
        return None
    for _ in range(tries):
        x, y = float(rng.uniform(w, size - w)), float(rng.uniform(h, size - h))
        free = all(
            abs(x - t.x) > w + t.half_width - 2 or abs(y - t.y) > h + t.half_height - 2
            for t in taken
        )
        if free:
            return replace(thing, x=x, y=y)
    return None


def sample_scene(
    rng: Generator,
    garments: Garments,
    size: int = CANVAS,
    count: int | None = None,
    number: float = 0.3,
    kinds: Sequence[int] | None = None,
) -> Scene:
    """Invent a scene.

    Args:
        rng: source of all choices.
        garments: photographs to draw from.
        size: side of the square canvas in pixels.
        count: how many garments to try to place; by default 0 to 6, fewer on a small canvas.
        number: probability of a printed number.
        kinds: the kinds to choose from; by default a random subset, so that kinds repeat.
    """
    if count is None:
        most = max(1, round(6 * (size / CANVAS) ** 2))
        count = int(rng.integers(0, most + 1)) if rng.random() < 0.5 else most
    if kinds is None:
        kinds = rng.choice(len(KINDS), int(rng.integers(2, 6)), replace=False).tolist()
    taken: list[Item | Number] = []
    label = place(rng, sample_number(rng), taken, size) if rng.random() < number else None
    if label is not None:
        taken.append(label)
    items: list[Item] = []
    for _ in range(count):
        kind = int(kinds[int(rng.integers(len(kinds)))])
        item = place(rng, make_item(rng, garments, kind), taken, size)
        if item is not None:
            items.append(item)
            taken.append(item)
    shapes = int(rng.integers(0, 1 + max(1, 4 * size // CANVAS)))
    return Scene(tuple(items), label, int(rng.integers(2**31)), size, shapes)


def render(
    scene: Scene, garments: Garments, owner: NDArray[np.int8] | None = None
) -> NDArray[np.uint8]:
    """Draw a scene.

    Args:
        scene: what to draw.
        garments: the photographs its items refer to.
        owner: if given, (size, size), filled with 1 + the index of the item seen at each pixel.

    Returns:
        (size, size, 3) uint8.
    """
    rng = np.random.default_rng(scene.seed)
    canvas = _background(rng, scene.size)
    picture = Image.fromarray(canvas)
    _draw_shapes(rng, picture, scene.shapes)
    if scene.number is not None:
        _draw_number(picture, scene.number)
    canvas = np.asarray(picture).copy()
    for index, item in enumerate(scene.items):
        _draw_item(canvas, item, garments, index, owner)
    return canvas


def jpeg(rng: Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compress as JPEG at a random quality and decompress."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(40, 96)))
    return np.asarray(Image.open(buffer))


def _background(rng: Generator, size: int) -> NDArray[np.uint8]:
    """A dull texture: coarse and fine noise, perhaps stripes, around a random grey."""
    base = rng.uniform(40, 150) + rng.uniform(-15, 15, 3)
    cells = int(rng.integers(2, 9))
    noise = rng.integers(0, 256, (cells, cells), dtype=np.uint8)
    coarse = np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))
    field = (coarse.astype(np.float32) - 128) * float(rng.uniform(0.05, 0.3))
    if rng.random() < 0.4:
        ramp = np.arange(size, dtype=np.float32) * float(rng.uniform(0.15, 1.2))
        wave = np.sin(ramp + rng.uniform(0, 6)) * float(rng.uniform(4, 18))
        field = field + (wave[None, :] if rng.random() < 0.5 else wave[:, None])
    grain = rng.standard_normal((size, size), dtype=np.float32) * float(rng.uniform(0, 8))
    field = field + grain
    return np.clip(base + field[..., None], 0, 255).astype(np.uint8)


def _draw_shapes(rng: Generator, picture: Image.Image, shapes: int) -> None:
    """Draw distractors: ellipses, rectangles, triangles and lines."""
    draw = ImageDraw.Draw(picture)
    for _ in range(shapes):
        x, y = (float(v) for v in rng.uniform(0, picture.width, 2))
        w, h = (float(v) for v in rng.uniform(3, 9, 2))
        colour = tuple(int(v) for v in rng.integers(20, 236, 3))
        form = int(rng.integers(4))
        if form == 0:
            draw.ellipse((x - w, y - h, x + w, y + h), fill=colour)
        elif form == 1:
            draw.rectangle((x - w, y - h, x + w, y + h), fill=colour)
        elif form == 2:
            draw.polygon([(x, y - h), (x - w, y + h), (x + w, y + h)], fill=colour)
        else:
            draw.line((x - 3 * w, y - h, x + 3 * w, y + h), fill=colour, width=2)


def _draw_number(picture: Image.Image, number: Number) -> None:
    """Print the digits on a plain label."""
    ink, paper = ((20, 20, 20), (235, 235, 225)) if number.dark else ((240, 240, 240), (25, 25, 35))
    draw = ImageDraw.Draw(picture)
    w, h = number.half_width, number.half_height
    draw.rectangle((number.x - w, number.y - h, number.x + w, number.y + h), fill=paper)
    font = _font(number.height)
    for digit, (x, y) in zip(number.digits, number.centres(), strict=True):
        draw.text((x, y), digit, fill=ink, font=font, anchor="mm")


@lru_cache(maxsize=32)
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, its digits `height` pixels high."""
    return ImageFont.load_default(height * 1.3)


def _draw_item(
    canvas: NDArray[np.uint8],
    item: Item,
    garments: Garments,
    index: int,
    owner: NDArray[np.int8] | None,
) -> None:
    """Blend one tinted, zoomed and rotated garment into `canvas` in place."""
    size = canvas.shape[0]
    x0, y0 = max(0, int(item.x - item.half_width) - 2), max(0, int(item.y - item.half_height) - 2)
    x1 = min(size, int(item.x + item.half_width) + 3)
    y1 = min(size, int(item.y + item.half_height) + 3)
    left, top, right, bottom = garments.boxes[item.photo]
    c = float(np.cos(np.radians(item.angle))) / item.zoom
    s = float(np.sin(np.radians(item.angle))) / item.zoom
    dx, dy = x0 - item.x, y0 - item.y
    across = c * dx + s * dy + (left + right) / 2
    down = -s * dx + c * dy + (top + bottom) / 2
    matrix = (c, s, across, -s, c, down)
    photo = Image.fromarray(garments.images[item.photo])
    warped = photo.transform(
        (x1 - x0, y1 - y0), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    grey = np.asarray(warped, dtype=np.float32)
    alpha = np.clip(grey / 50, 0, 1)
    shade = (0.4 + 0.6 / 255 * grey)[..., None] * _RGB[item.colour]
    region = canvas[y0:y1, x0:x1]
    region[...] = region + alpha[..., None] * (shade - region)
    if owner is not None:
        owner[y0:y1, x0:x1][alpha > 0.5] = index + 1
