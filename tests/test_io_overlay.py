"""Pictures of kept tokens: right pixels, right sizes, the same every time, written whole."""

import os

import numpy as np
import pytest
from PIL import Image

from mmtok.errors import InputError
from mmtok.io.overlay import BORDER, overlay, save_picture
from mmtok.io.sheet import MARGIN, PAPER, arrange

COLOUR = (200, 80, 40)


def plain(size=(112, 112)):
    return Image.new("RGB", size, COLOUR)


def grid(*kept, shape=(14, 14)):
    cells = np.zeros(shape, dtype=bool)
    for row, column in kept:
        cells[row, column] = True
    return cells


def centre(picture, row, column, shape=(14, 14)):
    width, height = picture.width / shape[1], picture.height / shape[0]
    return picture.getpixel((int((column + 0.5) * width), int((row + 0.5) * height)))


def test_kept_patches_keep_their_pixels_and_dropped_ones_are_dark_and_grey():
    picture = overlay(plain(), grid((2, 5), (2, 6)))
    assert picture.mode == "RGB"
    assert centre(picture, 2, 5) == centre(picture, 2, 6) == COLOUR
    red, green, blue = centre(picture, 3, 5)
    assert max(red, green, blue) - min(red, green, blue) <= 12
    assert max(red, green, blue) < 80


def test_the_border_runs_between_kept_and_dropped_only():
    picture = overlay(plain(), grid((2, 5), (2, 6)))
    cell = picture.width // 14
    assert picture.getpixel((5 * cell, 2 * cell + cell // 2)) == BORDER
    assert picture.getpixel((7 * cell - 1, 2 * cell + cell // 2)) == BORDER
    assert picture.getpixel((6 * cell, 2 * cell + cell // 2)) != BORDER
    everything = np.asarray(overlay(plain(), np.ones((14, 14), dtype=bool)))
    assert not (everything == BORDER).all(-1).any()


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((112, 112), (448, 448)),
        ((100, 150), (500, 750)),
        ((448, 600), (448, 600)),
        ((3072, 1536), (1536, 768)),
        ((1, 1), (448, 448)),
        ((4, 800), (4, 800)),
        ((8000, 40), (1536, 8)),
    ],
)
def test_sizes_are_readable_and_bounded(size, shown):
    assert overlay(plain(size), grid((0, 0), (13, 13))).size == shown


def test_uneven_grids_cover_the_whole_picture():
    shape = (5, 7)
    picture = overlay(plain((451, 463)), np.ones(shape, dtype=bool))
    assert picture.size == (451, 463)
    picture = overlay(plain((451, 463)), grid((4, 6), shape=shape))
    assert centre(picture, 4, 6, shape) == COLOUR
    assert picture.getpixel((450, 462)) == BORDER


def test_any_mode_of_picture_is_taken_and_left_alone():
    for mode in ("L", "RGBA", "P", "CMYK"):
        picture = plain().convert(mode)
        before = picture.tobytes()
        assert overlay(picture, grid((0, 0))).mode == "RGB"
        assert picture.tobytes() == before


def test_the_same_picture_every_time():
    noise = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    kept = np.random.default_rng(1).random((14, 14)) < 0.1
    first, second = (overlay(Image.fromarray(noise), kept) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    panels = [("one", first), ("two\nlines", second)]
    sheets = [arrange(panels, columns=2, font_size=20) for _ in range(2)]
    assert sheets[0].tobytes() == sheets[1].tobytes()


@pytest.mark.parametrize("shape", [(14,), (2, 14, 14), (0, 14)])
def test_grids_of_the_wrong_shape(shape):
    with pytest.raises(InputError, match=r"expected \(h, w\)"):
        overlay(plain(), np.zeros(shape, dtype=bool))


def test_a_sheet_shows_every_panel_in_reading_order_below_its_caption():
    panels = [(f"{number}", Image.new("RGB", (56, 56), (30 * number, 9, 9))) for number in range(6)]
    sheet = arrange(panels, columns=4, font_size=15)
    pitch = 56 + MARGIN
    assert sheet.width == 4 * pitch + MARGIN
    assert sheet.getpixel((2, 2)) == PAPER
    row_pitch = (sheet.height - MARGIN) // 2
    for number in range(6):
        column, row = number % 4, number // 4
        bottom = MARGIN + (row + 1) * row_pitch - MARGIN
        x, y = MARGIN + column * pitch + 28, bottom - 28
        assert sheet.getpixel((x, y)) == (30 * number, 9, 9)
    assert arrange(panels[:2], columns=4, font_size=15).width == 2 * pitch + MARGIN


def test_a_sheet_makes_room_for_every_caption():
    short = arrange([("baseline", plain()), ("todre", plain((112, 60)))], columns=2, font_size=20)
    assert short.width == 2 * (112 + MARGIN) + MARGIN
    words = "todre(keep=0.1)\n" + "many words " * 9
    long = arrange([("baseline", plain()), (words, plain())], columns=2, font_size=20)
    assert long.width == short.width
    assert long.height > short.height
    assert long.getpixel((long.width // 4, long.height - MARGIN - 5)) == COLOUR


@pytest.mark.parametrize("name", ["out.png", "out.JPG", "out.jpeg", "été x.webp"])
def test_save_picture(tmp_path, name):
    path = save_picture(plain().convert("RGBA"), tmp_path / name)
    assert np.abs(np.subtract(Image.open(path).convert("RGB").getpixel((9, 9)), COLOUR)).max() < 6
    assert os.listdir(tmp_path) == [name]
    save_picture(Image.new("RGB", (3, 3)), path)
    assert Image.open(path).size == (3, 3)


def test_save_picture_refuses_what_it_cannot_write(tmp_path):
    for name, said in [
        ("out.gif", ".png"),
        ("out", ".png"),
        ("none/out.png", "no such folder"),
    ]:
        with pytest.raises(InputError, match=said):
            save_picture(plain(), tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="directory"):
        save_picture(plain(), tmp_path / "folder.png")


def test_a_failed_write_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = save_picture(plain(), tmp_path / "out.png")
    before = path.read_bytes()

    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left"):
        save_picture(plain((5, 5)), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["out.png"]
