"""Pictures for training, small and in memory: from a folder of files or a tar of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from mmtok.errors import InputError
from mmtok.io.image import check_size, to_rgb

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def load_pictures(source: Path, side: int, max_pixels: int = 2**24) -> Tensor:
    """All pictures of a folder (with those below it) or a .tar, by name, uint8 (M, 3, side, side).

    The middle square of each is scaled to `side`.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    made = []
    for name, opened in _opened(source):
        try:
            with Image.open(opened) as picture:
                check_size(picture.size, max_pixels=max_pixels, name=name)
                made.append(_square(to_rgb(picture, name=name), side))
        except OSError as error:
            raise InputError(f"{name}: cannot be read as a picture ({error})") from None
    if not made:
        raise InputError(f"{source}: no pictures, expected a folder or .tar of {_ENDINGS}")
    return torch.stack(made)


def _opened(source: Path) -> Iterator[tuple[str, io.BytesIO | Path]]:
    """(name, file) of each picture, by name."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in _ENDINGS:
                yield str(path), path
    elif source.is_file() and tarfile.is_tarfile(source):
        with tarfile.open(source) as tar:
            found = [m for m in tar.getmembers() if m.isfile()]
            for member in sorted(found, key=lambda m: m.name):
                file = tar.extractfile(member)
                if file is not None and member.name.lower().endswith(_ENDINGS):
                    yield f"{source}:{member.name}", io.BytesIO(file.read())


def _square(picture: Image.Image, side: int) -> Tensor:
    short = min(picture.size)
    left, top = ((full - short) // 2 for full in picture.size)
    box = (left, top, left + short, top + short)
    scaled = picture.resize((side, side), Image.Resampling.BICUBIC, box=box)
    pixels: Tensor = pil_to_tensor(scaled)
    return pixels
