"""Pictures with captions, arranged in rows on a light ground."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER = (250, 250, 247)
INK = (32, 36, 44)
SOFT_INK = (110, 116, 126)
MARGIN = 20

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Line = tuple[str, Font, tuple[int, int, int]]


def arrange(
    panels: Sequence[tuple[str, Image.Image]], *, columns: int, font_size: int
) -> Image.Image:
    """Captioned pictures in rows of `columns`, each row as high as its highest picture.

    Args:
        panels: (caption, picture). The first line of a caption is its title, the others are
            smaller; all are broken where they would be wider than a cell.
        columns: pictures in a row.
        font_size: height of the title in pixels.
    """
    columns = max(1, min(columns, len(panels)))
    width = max(picture.width for _, picture in panels)
    captions = [list(_lines(caption, width, font_size)) for caption, _ in panels]
    leading = round(font_size * 1.4)
    head = leading * max(len(caption) for caption in captions) + 4
    tops = [MARGIN]
    for start in range(0, len(panels), columns):
        tallest = max(picture.height for _, picture in panels[start : start + columns])
        tops.append(tops[-1] + head + tallest + MARGIN)
    sheet = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, tops[-1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, ((_, picture), caption) in enumerate(zip(panels, captions, strict=True)):
        x, y = MARGIN + number % columns * (width + MARGIN), tops[number // columns]
        for place, (words, font, ink) in enumerate(caption):
            draw.text((x, y + place * leading), words, font=font, fill=ink)
        sheet.paste(picture, (x, y + head))
    return sheet


def _lines(caption: str, width: int, font_size: int) -> Iterator[Line]:
    """The lines of a caption, each no wider than `width` unless a single word is."""
    title, small = ImageFont.load_default(font_size), ImageFont.load_default(font_size - 4)
    for number, paragraph in enumerate(caption.split("\n")):
        font, ink = (title, INK) if number == 0 else (small, SOFT_INK)
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                yield line, font, ink
                longer = word
            line = longer
        yield line, font, ink
