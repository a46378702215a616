"""Fashion-MNIST garments (MIT licence): the photographs that scenes are composed of.

The four upper-body classes, which even people confuse (T-shirt, pullover, coat, shirt), are one
kind, "top"; the ten classes so become seven nameable kinds.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KINDS = ("top", "trouser", "dress", "sandal", "sneaker", "bag", "boot")
"""The seven nameable kinds."""
PLURALS = ("tops", "trousers", "dresses", "sandals", "sneakers", "bags", "boots")
CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)
"""Fashion-MNIST's ten classes in order."""
_KIND_OF_CLASS = np.array([0, 1, 0, 2, 0, 3, 0, 4, 5, 6])


@dataclass(frozen=True)
class Garments:
    """Garment photographs, each with its kind and the box of its visible part.

    Attributes:
        images: (M, 28, 28) uint8, black background.
        kinds: (M,) int64, an index into `KINDS`.
        boxes: (M, 4) float, left, top, right, bottom of the visible part in pixels.
        by_kind: for each kind the indices of its photographs.
    """

    images: NDArray[np.uint8]
    kinds: NDArray[np.int64]
    boxes: NDArray[np.float64]
    by_kind: tuple[NDArray[np.int64], ...]

    @classmethod
    def from_arrays(cls, images: NDArray[np.uint8], classes: NDArray[np.int64]) -> Garments:
        """Build from photographs (M, 28, 28) and Fashion-MNIST class numbers (M,).

        Raises:
            ValueError: if a kind has no photograph or the shapes do not fit.
        """
        if images.ndim != 3 or len(images) != len(classes):
            raise ValueError(f"expected (M, H, W) images and M classes, got {images.shape}")
        kinds = _KIND_OF_CLASS[classes].astype(np.int64)
        by_kind = tuple(np.flatnonzero(kinds == k) for k in range(len(KINDS)))
        for kind, members in zip(KINDS, by_kind, strict=True):
            if not len(members):
                raise ValueError(f"no photograph of kind {kind!r} among {len(images)}")
        return cls(images, kinds, _boxes(images), by_kind)


def load_garments(root: str | Path, train: bool) -> Garments:
    """Read Fashion-MNIST from `root` as `read_classes` does, in the seven kinds."""
    return Garments.from_arrays(*read_classes(root, train))


def read_classes(root: str | Path, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Photographs (M, 28, 28) and numbers (M,) of `CLASSES`, in torchvision's folder layout.

    If the files are not there, torchvision downloads them into `root`.

    Args:
        root: the folder that holds `FashionMNIST/raw`.
        train: the 60,000 training photographs, or the 10,000 test ones.
    """
    raw = Path(root) / "FashionMNIST" / "raw"
    prefix = "train" if train else "t10k"
    names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    if not all((raw / n).exists() or (raw / f"{n}.gz").exists() for n in names):
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(root), train=train, download=True)
    images, labels = (_read_idx(raw / n) for n in names)
    return images, labels.astype(np.int64)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one idx file (LeCun's format), gzipped or not."""
    data = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    dims = data[3]
    shape = np.frombuffer(data, ">u4", dims, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape.astype(int))


def _boxes(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Box of the visible part (> 40 of 255) of every photograph, (M, 4)."""
    seen = images > 40
    seen[~seen.any(axis=(1, 2))] = True
    columns, rows = np.asarray(seen.any(axis=1)), np.asarray(seen.any(axis=2))
    width, height = images.shape[2], images.shape[1]
    left, top = columns.argmax(axis=1), rows.argmax(axis=1)
    right = width - columns[:, ::-1].argmax(axis=1)
    bottom = height - rows[:, ::-1].argmax(axis=1)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float64)
