"""Every odd picture comes in upright and in RGB; every bad file gives one clear line."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mmtok.errors import InputError
from mmtok.io.image import MAX_SIDE, check_size, load_image, to_rgb

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def quadrants(mode="RGB", size=(32, 16)):
    """Red and green above blue and grey, so that any turn or flip shows."""
    width, height = size
    picture = Image.new("RGB", size, RED)
    picture.paste(GREEN, (width // 2, 0, width, height // 2))
    picture.paste(BLUE, (0, height // 2, width // 2, height))
    picture.paste(GREY, (width // 2, height // 2, width, height))
    return picture.convert(mode)


def corners(picture):
    """The centres of the four quadrants."""
    width, height = picture.size
    return [
        picture.getpixel((x, y))
        for y in (height // 4, 3 * height // 4)
        for x in (width // 4, 3 * width // 4)
    ]


def assert_quadrants(picture, tolerance=0):
    assert picture.mode == "RGB"
    assert picture.size == (32, 16)
    assert np.abs(np.subtract(corners(picture), [RED, GREEN, BLUE, GREY])).max() <= tolerance


def refused(path, *words, **options):
    """The one line of the error, which names the file and says each of `words`."""
    with pytest.raises(InputError) as caught:
        load_image(path, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    assert "expected" in line
    for word in words:
        assert word in line
    return line


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "gif", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
    path = tmp_path / f"picture.{suffix}"
    quadrants().save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert_quadrants(load_image(path))


def test_content_decides_not_the_name(tmp_path):
    path = tmp_path / "really a png.jpg"
    quadrants().save(path, format="PNG")
    assert_quadrants(load_image(str(path)))


def test_names_with_spaces_and_other_alphabets(tmp_path):
    path = tmp_path / "été 写真 %20 'x'.png"
    quadrants().save(path)
    assert_quadrants(load_image(path))


UNDO = {
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_rotation_is_applied(tmp_path, orientation, suffix):
    stored = quadrants()
    for step in UNDO[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    stored.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    assert_quadrants(load_image(path), tolerance=4)


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "print.jpg"
    quadrants("CMYK").save(path, quality=100, subsampling=0)
    assert_quadrants(load_image(path), tolerance=6)


def test_palette_and_one_bit(tmp_path):
    quadrants("P").save(tmp_path / "palette.png")
    quadrants().quantize(4).save(tmp_path / "four.png", bits=2)
    assert_quadrants(load_image(tmp_path / "four.png"))
    assert load_image(tmp_path / "palette.png").mode == "RGB"
    Image.new("1", (4, 4), 1).save(tmp_path / "bit.png")
    assert load_image(tmp_path / "bit.png").getpixel((0, 0)) == (255, 255, 255)


def test_transparency_is_composited_on_white(tmp_path):
    clear = quadrants("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 128))
    clear.save(tmp_path / "alpha.png")
    loaded = load_image(tmp_path / "alpha.png")
    assert_quadrants(loaded)
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 0)) == (127, 127, 127)

    grey = Image.new("LA", (2, 1), (50, 255))
    grey.putpixel((1, 0), (50, 0))
    grey.save(tmp_path / "la.png")
    assert list(load_image(tmp_path / "la.png").get_flattened_data()) == [(50,) * 3, (255,) * 3]

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert list(load_image(tmp_path / "p.png").get_flattened_data()) == [(10, 20, 30), (255,) * 3]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    loaded = np.asarray(load_image(path))
    assert loaded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (loaded == loaded[..., :1]).all()


def sixteen_bit_rgb_png(pixels):
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_sixteen_bit_colour(tmp_path):
    path = tmp_path / "deep colour.png"
    path.write_bytes(sixteen_bit_rgb_png(np.array([[[65535, 32896, 0]]], dtype=np.uint16)))
    assert load_image(path).getpixel((0, 0)) == (255, 128, 0)


def test_greyscale(tmp_path):
    Image.new("L", (3, 2), 77).save(tmp_path / "grey.jpg", quality=100)
    assert load_image(tmp_path / "grey.jpg").getpixel((2, 1)) == (77, 77, 77)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_the_first_of_several_frames(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    others = [Image.new("RGB", (32, 16), BLUE), Image.new("RGB", (32, 16), RED)]
    options = {"lossless": True} if suffix == "webp" else {}
    quadrants().save(path, save_all=True, append_images=others, **options)
    assert_quadrants(load_image(path))


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), GREEN).save(tmp_path / "dot.png")
    assert load_image(tmp_path / "dot.png").getpixel((0, 0)) == GREEN


def test_missing_directory_and_empty(tmp_path):
    refused(tmp_path / "none.jpg", "no such file", "JPEG")
    refused(tmp_path, "directory")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "empty")
    refused(Path("/dev/null"), "not a regular file")
    refused(tmp_path / f"{'long' * 100}.jpg", "cannot be read")
    with pytest.raises(InputError, match="no such file"):
        load_image("nul\0byte.jpg")


def test_text_under_the_name_of_a_picture(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("this is not a picture\n" * 50)
    refused(path, "not an image")


def test_formats_that_run_other_programs_are_not_tried(tmp_path):
    path = tmp_path / "figure.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    refused(path, "not an image")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_files(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path)


def test_random_damage_never_escapes_as_another_error(tmp_path):
    random = np.random.default_rng(1)
    lines = []
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tif", "ppm", "avif"):
        path = tmp_path / f"damaged.{suffix}"
        quadrants(size=(48, 40)).save(path)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            at = random.integers(0, min(len(whole), 200), 4)
            damaged[at] = random.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                load_image(path)
            except InputError as error:
                lines.append(str(error))
    assert len(lines) > 20
    assert not any("\n" in line for line in lines)


def huge_png(path, width, height):
    """A PNG that only claims its size, in a hundred bytes."""
    head = sixteen_bit_rgb_png(np.zeros((1, 1, 3), dtype=np.uint16))
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(body))
    path.write_bytes(head[:12] + body + crc + head[33:])


@pytest.mark.parametrize("size", [(50_000, 50_000), (50_000, 1_000), (12_000, 12_000), (50_000, 2)])
def test_too_large_is_refused_by_the_header_alone(tmp_path, size, monkeypatch):
    path = tmp_path / "bomb.png"
    huge_png(path, *size)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="bomb") as caught:
            load_image(path)
    assert "\n" not in str(caught.value)


def test_a_limit_of_ones_own(tmp_path):
    quadrants().save(tmp_path / "picture.png")
    refused(tmp_path / "picture.png", "32 x 16", "at most 511", max_pixels=511)
    assert_quadrants(load_image(tmp_path / "picture.png", max_pixels=512))


def test_thin_strips_are_refused():
    check_size((2000, 10), max_pixels=10**9, name="strip")
    with pytest.raises(InputError, match="200:1"):
        check_size((2010, 10), max_pixels=10**9, name="strip")
    with pytest.raises(InputError, match="sides of at most"):
        check_size((MAX_SIDE + 1, MAX_SIDE), max_pixels=10**12, name="wide")


def test_floating_point_and_wide_integers_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "float.tif")
    refused(tmp_path / "float.tif", "floating point")
    Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)).save(tmp_path / "wide.tif")
    refused(tmp_path / "wide.tif", "70000")


def test_pillow_is_left_as_it_was(tmp_path):
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    quadrants().save(tmp_path / "picture.png")
    load_image(tmp_path / "picture.png")
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_an_open_picture_is_not_changed():
    picture = quadrants()
    turned = to_rgb(picture)
    turned.putpixel((0, 0), BLUE)
    assert picture.getpixel((0, 0)) == RED
