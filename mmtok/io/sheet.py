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
    """Captioned pictures in rows of `columns`, on cells as large as the largest of them.

    Args:
        panels: (caption, picture). The first line of a caption is its title, the others are
            smaller; all are broken where they would be wider than a cell.
        columns: pictures in a row.
        font_size: height of the title in pixels.
    """
    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    cell_width = max(picture.width for _, picture in panels)
    captions = [list(_lines(caption, cell_width, font_size)) for caption, _ in panels]
    leading = round(font_size * 1.4)
    head = leading * max(len(caption) for caption in captions) + 4
    cell_height = head + max(picture.height for _, picture in panels)
    step_x, step_y = cell_width + MARGIN, cell_height + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, ((_, picture), caption) in enumerate(zip(panels, captions, strict=True)):
        x = MARGIN + number % columns * step_x
        y = MARGIN + number // columns * step_y
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
