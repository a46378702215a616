"""Image files as upright 8-bit RGB pictures, whatever they look like on disk.

Sizes are checked from the file's header, before any pixel is decoded, so memory stays bounded:
about 4 bytes a pixel for each of at most four copies, 1 GiB at the default limit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mmtok.errors import InputError
from mmtok.io.files import check_file, reason

MAX_PIXELS = 2**26
"""Most pixels of one picture: 67,108,864, which a 60-megapixel camera stays below."""
MAX_SIDE = 32_768
"""Most pixels along one side."""
MAX_ASPECT = 200
"""Most that one side may exceed the other, as in Qwen-VL: processors that scale the short side
to a fixed size would otherwise blow a thin strip up to gigabytes."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
_EXPECTED = "an image file (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF or JPEG 2000)"


def load_image(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """One image file as an upright RGB picture.

    EXIF rotation is applied. Transparency is composited on white. 16-bit greyscale is scaled to
    8 bits, not clipped; 1-bit, greyscale, palette and CMYK pictures are converted. Of an animation
    or a file of several pages the first is taken. Colour profiles are not applied.

    Args:
        path: the file; its content decides the format, not its name.
        max_pixels: width x height at most; Pillow's own limit (`Image.MAX_IMAGE_PIXELS`, twice
            over) holds as well. `MAX_SIDE` and `MAX_ASPECT` hold always.

    Raises:
        InputError: no such file, a directory, an empty file, not an image, a damaged or truncated
            image, one above the limits, or one in floating point or wider than 16 bits.
    """
    with _opened(path, max_pixels) as opened:
        opened.load()
        return to_rgb(opened, name=str(path))


def image_size(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of what `load_image` would give, from the file's header alone.

    Raises:
        InputError: as `load_image`, as far as the header tells.
    """
    with _opened(path, max_pixels) as opened:
        turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (opened.height, opened.width) if turned else opened.size


@contextmanager
def _opened(path: str | PathLike[str], max_pixels: int) -> Iterator[Image.Image]:
    """An image file whose header is read and within the limits; all errors in one line."""
    file = check_file(path, _EXPECTED)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            # What is wrong with a file is said once, by the errors below.
            warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            with Image.open(file, formats=formats) as opened:
                check_size(opened.size, max_pixels=max_pixels, name=str(file))
                yield opened
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise InputError(
            f"{file}: too large an image, expected at most {limit} pixels in all: "
            "scale it down first"
        ) from None
    except UnidentifiedImageError:
        raise InputError(
            f"{file}: not an image, or one cut off within its header, expected {_EXPECTED}"
        ) from None
    except Exception as error:  # Pillow's readers raise whatever they trip over in damaged bytes
        raise InputError(
            f"{file}: damaged or truncated image ({reason(error)}), expected a complete image file"
        ) from None


def check_size(size: tuple[int, int], *, max_pixels: int, name: str) -> None:
    """Refuse a picture of `size` (width, height) above the limits, `name` saying which one it is.

    Raises:
        InputError: more than `max_pixels`, a side above `MAX_SIDE`, or thinner than `MAX_ASPECT`.
    """
    width, height = size
    found = f"{name}: picture of {width} x {height} pixels"
    if width < 1 or height < 1:
        raise InputError(f"{found}, expected at least 1 x 1")
    if max(size) > MAX_SIDE:
        raise InputError(f"{found}, expected sides of at most {MAX_SIDE}: scale it down first")
    if width * height > max_pixels:
        raise InputError(f"{found}, expected at most {max_pixels} in all: scale it down first")
    if max(size) > MAX_ASPECT * min(size):
        raise InputError(f"{found}, expected sides within {MAX_ASPECT}:1 of each other: crop it")


def to_rgb(image: Image.Image, *, name: str = "image") -> Image.Image:
    """A picture in any of Pillow's modes as a new, upright 8-bit RGB one.

    Args:
        image: the picture, already open; its EXIF rotation is applied.
        name: what an error calls it.

    Raises:
        InputError: floating point pixels, or integers outside 0..65535.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise InputError(
            f"{name}: floating point pixels have no fixed range, expected 8 or 16 bits"
        )
    if upright.mode.startswith("I"):
        return _from_16_bit(upright, name).convert("RGB")
    if upright.has_transparency_data:
        transparent = upright.convert("RGBA")
        white = Image.new("RGB", upright.size, "white")
        white.paste(transparent, mask=transparent.getchannel("A"))
        return white
    return upright.convert("RGB") if upright.mode != "RGB" or upright is image else upright


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """Integers 0..65535 as 0..255, rounded: 65535 / 255 is exactly 257."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise InputError(f"{name}: pixels from {low} to {high}, expected 16 bits: 0 to 65535")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
