"""Pictures that show at a glance which visual tokens reached the model.

Kept patches stay as they are; dropped ones lose their colour and most of their light. A thin grid
shows the patches, a bright line the border between kept and dropped.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmtok.errors import InputError
from mmtok.io.files import check_name, reason, replacing

Kept = NDArray[np.bool_]

BORDER = (255, 176, 32)
_SHADE = np.array([26, 29, 36], dtype=np.float32)
_WRITERS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def overlay(
    image: Image.Image, kept: Kept, *, min_side: int = 448, max_side: int = 1536
) -> Image.Image:
    """The picture with its dropped patches dimmed and greyed.

    Args:
        image: what the model saw, in any of Pillow's modes.
        kept: (h, w) bool, True where a patch's token reached the model. The grid covers the
            picture evenly.
        min_side: a picture whose short side is below this is enlarged by a whole factor ...
        max_side: ... as long as its long side stays within this; one above it is scaled down.

    Returns:
        A new RGB picture.

    Raises:
        InputError: `kept` is not a two-dimensional array of at least one cell.
    """
    grid = _check_grid(kept)
    size = _readable(image.size, min_side, max_side)
    base = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    pixels = np.asarray(base, dtype=np.float32)
    rows, columns = _edges(grid.shape[0], size[1]), _edges(grid.shape[1], size[0])
    shown = np.repeat(np.repeat(grid, np.diff(rows), axis=0), np.diff(columns), axis=1)
    luma = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    dimmed = _SHADE + 0.30 * luma[..., None]
    mixed = np.where(shown[..., None], pixels, dimmed)
    mixed = _draw_grid(mixed, shown, rows, columns)
    picture = Image.fromarray(np.clip(mixed.round(), 0, 255).astype(np.uint8))
    _draw_borders(picture, grid, rows, columns)
    return picture


def save_picture(image: Image.Image, path: str | PathLike[str]) -> Path:
    """Write a picture whole or not at all, and return its path.

    It is written to a temporary file in the same folder, which then takes the name.

    Raises:
        InputError: the extension is not .png, .jpg, .jpeg or .webp, the folder does not exist, or
            it cannot be written.
    """
    file = check_picture_path(path)
    with replacing(file) as beside:
        kind = _WRITERS[file.suffix.lower()]
        image.convert("RGB").save(beside, format=kind, quality=92)
    return file


def check_picture_path(path: str | PathLike[str]) -> Path:
    """The path as a `Path`, once it is known that a picture can be written there.

    Raises:
        InputError: as in `save_picture`.
    """
    file = check_name(path)
    if file.suffix.lower() not in _WRITERS:
        raise InputError(f"{file}: pictures are written as {', '.join(_WRITERS)}, name one of them")
    if file.is_dir() or not file.parent.is_dir():
        what = "is a directory" if file.is_dir() else f"no such folder as {file.parent}"
        raise InputError(f"{file}: {what}, expected a file name in an existing folder")
    try:
        TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({reason(error)})") from None
    return file


def _check_grid(kept: Kept) -> Kept:
    grid = np.asarray(kept, dtype=bool)
    if grid.ndim != 2 or grid.size == 0:
        raise InputError(f"kept has shape {grid.shape}, expected (h, w) with at least one patch")
    return grid


def _readable(size: tuple[int, int], min_side: int, max_side: int) -> tuple[int, int]:
    width, height = size
    if max(size) > max_side:
        scale = max_side / max(size)
        return max(1, round(width * scale)), max(1, round(height * scale))
    factor = min(-(-min_side // min(size)), max_side // max(size))
    return width * max(1, factor), height * max(1, factor)


def _edges(cells: int, length: int) -> NDArray[np.int64]:
    """The `cells` + 1 pixel positions that divide `length` evenly."""
    return np.arange(cells + 1) * length // cells


def _smallest(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> int:
    return int(min(np.diff(rows).min(), np.diff(columns).min()))


def _draw_grid(
    pixels: NDArray[np.float32], shown: Kept, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Lines of one pixel between the patches, left out where they would crowd."""
    if _smallest(rows, columns) < 6:
        return pixels
    line = np.zeros(shown.shape, dtype=bool)
    line[rows[1:-1]] = True
    line[:, columns[1:-1]] = True
    pixels[line & shown] *= 0.78
    pixels[line & ~shown] += 22
    return pixels


def _draw_borders(
    picture: Image.Image, grid: Kept, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> None:
    """A bright line between kept and dropped patches, drawn inside the kept ones."""
    smallest = _smallest(rows, columns)
    if grid.all() or smallest < 4:
        return
    draw = ImageDraw.Draw(picture)
    width = 2 if smallest >= 12 else 1
    framed = np.pad(grid, 1)
    for row, column in zip(*np.nonzero(grid), strict=True):
        top, bottom = int(rows[row]), int(rows[row + 1]) - 1
        left, right = int(columns[column]), int(columns[column + 1]) - 1
        sides = (
            (framed[row, column + 1], (left, top, right, top + width - 1)),
            (framed[row + 2, column + 1], (left, bottom - width + 1, right, bottom)),
            (framed[row + 1, column], (left, top, left + width - 1, bottom)),
            (framed[row + 1, column + 2], (right - width + 1, top, right, bottom)),
        )
        for neighbour_kept, box in sides:
            if not neighbour_kept:
                draw.rectangle(box, fill=BORDER)
