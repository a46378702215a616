"""Views: the right picture, upright and in its colours, with the kept cells in the right places."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmtok
from mmtok.models.families import FAMILIES
from mmtok.pruning.base import Reducer
from mmtok.tokens import Selection
from mmtok.views import View, draw, views

CORNERS = {"top left": (200, 30, 30), "top right": (30, 170, 40), "bottom": (40, 50, 200)}
TILED = [name for name, family in FAMILIES.items() if family.items != "entry"]
CLIPS = [name for name, family in FAMILIES.items() if family.video is not None]


@dataclass(frozen=True, kw_only=True)
class TopLeft(Reducer):
    """Keeps the tokens of the top left quarter, newlines of those rows included."""

    keep: int | float = 0.25

    def after_encoder(self, tokens, query):
        h, w = tokens.position[..., 1:].unbind(-1)
        rows, columns = tokens.grid[:, 1:2], tokens.grid[:, 2:]
        keep = (2 * h < rows) & ((2 * w < columns) | (w == columns)) & tokens.mask
        return Selection(indices=[row.nonzero().squeeze(1) for row in keep])


def corners(width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), CORNERS["bottom"])
    picture.paste(CORNERS["top left"], (0, 0, width // 2, height // 2))
    picture.paste(CORNERS["top right"], (width // 2, 0, width, height // 2))
    return picture


@cache
def model(family: str) -> mmtok.LVLM:
    return mmtok.load(family, dummy=True)


def look(family: str, images: Any = (), clips: Any = (), reduce: Any = None) -> list[View]:
    lvlm = model(family)
    result = mmtok.Pipeline(lvlm, reduce or TopLeft()).generate(
        images, "what?", clips, max_new_tokens=1
    )
    return views(lvlm, result, images, clips)


def colour(view: View, x: float, y: float) -> np.ndarray:
    return np.asarray(view.picture)[int(view.picture.height * y), int(view.picture.width * x)]


def assert_corners(view: View) -> None:
    assert np.abs(colour(view, 0.2, 0.2) - np.array(CORNERS["top left"], int)).max() < 12
    assert np.abs(colour(view, 0.8, 0.2) - np.array(CORNERS["top right"], int)).max() < 12
    assert np.abs(colour(view, 0.5, 0.8) - np.array(CORNERS["bottom"], int)).max() < 12


def assert_top_left_kept(view: View) -> None:
    h, w = view.kept.shape
    expected = np.zeros((h, w), bool)
    expected[: (h + 1) // 2, : (w + 1) // 2] = True
    np.testing.assert_array_equal(view.kept, expected)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TILED])
@pytest.mark.parametrize("size", [(120, 120), (200, 100), (90, 180)])
def test_image(family: str, size: tuple[int, int]) -> None:
    (view,) = look(family, [corners(*size)])
    assert view.title == "image 1"
    assert_corners(view)
    assert_top_left_kept(view)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TILED])
def test_several_images(family: str) -> None:
    first, second = look(family, [corners(120, 120), Image.new("RGB", (60, 100), (250, 240, 0))])
    assert (first.title, second.title) == ("image 1", "image 2")
    assert_corners(first)
    assert np.abs(colour(second, 0.5, 0.5) - np.array((250, 240, 0))).max() < 12
    assert_top_left_kept(first)
    assert_top_left_kept(second)


@pytest.mark.parametrize("family", TILED)
def test_tiles(family: str) -> None:
    shown = look(family, [corners(300, 200)])
    assert len(shown) > 2
    assert "tile 1" in shown[0].title
    assert_corners(shown[-1])  # both end with the overview
    assert np.abs(colour(shown[0], 0.1, 0.1) - np.array(CORNERS["top left"])).max() < 12
    for view in shown:
        assert_top_left_kept(view)


@pytest.mark.parametrize("family", CLIPS)
def test_clip(family: str) -> None:
    frames = [Image.new("RGB", (90, 70), (40 * t, 100, 255 - 40 * t)) for t in range(6)]
    shown = look(family, clips=[frames])
    step = len(frames) // len(shown)
    assert step == (2 if "qwen" in family else 1)
    for t, view in enumerate(shown):
        assert view.title == f"clip 1, frame {t + 1} of {len(shown)}"
        assert np.abs(colour(view, 0.5, 0.5) - np.array(frames[t * step])[0, 0]).max() < 12
        assert_top_left_kept(view)


def test_clip_read_as_images() -> None:
    frames = [Image.new("RGB", (90, 90), (40 * t, 0, 0)) for t in range(3)]
    shown = look("llava", [corners(90, 90)], [frames])
    titles = ["image 1", *(f"clip 1, frame {t + 1} of 3" for t in range(3))]
    assert [view.title for view in shown] == titles
    assert_corners(shown[0])
    assert np.abs(colour(shown[3], 0.5, 0.5) - np.array((80, 0, 0))).max() < 12


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_smaller_picture(family: str) -> None:
    (view,) = look(family, [corners(168, 168)], reduce="downsample(keep=4)")
    assert view.kept.shape == (2, 2)
    assert view.kept.all()
    assert_corners(view)


def test_draw() -> None:
    (view,) = look("llava", [corners(84, 84)])
    one = np.asarray(draw([view]))
    kept, dropped = one[one.shape[0] // 4, one.shape[1] // 5], one[-one.shape[0] // 5, 10]
    assert np.abs(kept - np.array(CORNERS["top left"])).max() < 60
    assert dropped.max() < 100 < max(CORNERS["bottom"])
    sheet = draw([view] * 5, columns=3)
    assert sheet.width > sheet.height
    assert sheet.width > 3 * 224
