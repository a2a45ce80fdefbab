"""Contact sheet: images of a dataset with their captions, on one page."""

import textwrap
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from openslip.data.image.decode import open_image
from openslip.data.source import Source
from openslip.durable import durable
from openslip.errors import UserError

COLUMNS, ROWS = 6, 4
SIDE = 224  # side of the square that an image is fitted into, in pixels
PADDING, GAP = 12, 16  # pixels inside a card, and between cards
WIDTH, LINES, FONT_SIZE = 31, 4, 12  # characters per line, lines, and font size in pixels of a caption
PAPER, CARD, FRAME, INK, FAINT = "#e9e9e6", "#ffffff", "#f3f3f1", "#222222", "#8a8a86"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def write_contact_sheet(source: Source, path: Path) -> None:
    """Draw evenly spaced samples to an image file, from left to right and top to bottom."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"contact sheet {path}: expected a name that ends in .png or .jpg")
    try:
        with durable(path) as file:
            draw_contact_sheet(source).save(file, FORMATS[path.suffix.lower()], quality=92)
    except OSError as error:
        raise UserError(f"contact sheet {path} cannot be written ({error.strerror}): name another file") from error


def draw_contact_sheet(source: Source) -> Image.Image:
    # Pillow's own font has no accents. Matplotlib's has most alphabets, and a box for a missing character.
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf"), FONT_SIZE)
    count = min(COLUMNS * ROWS, len(source))
    width, height = SIDE + 2 * PADDING, SIDE + 3 * PADDING + LINES * (FONT_SIZE + 5)
    columns, rows = min(COLUMNS, count), -(-count // COLUMNS)
    sheet = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for cell in range(count):
        image, caption = look(source, cell * len(source) // count)
        row, column = divmod(cell, COLUMNS)
        left, top = GAP + column * (width + GAP), GAP + row * (height + GAP)
        x, y = left + PADDING, top + PADDING
        draw.rounded_rectangle((left, top, left + width - 1, top + height - 1), 8, CARD)
        sheet.paste(image or FRAME, (x, y, x + SIDE, y + SIDE))
        if image is None:
            draw.text((x + SIDE / 2, y + SIDE / 2), "cannot be decoded", FAINT, font, anchor="mm")
        text = "".join(letter if letter.isprintable() else " " for letter in caption) or "no caption"
        lines = textwrap.wrap(text, WIDTH, max_lines=LINES, placeholder="...")
        draw.text((x, y + SIDE + PADDING), "\n".join(lines), INK if caption else FAINT, font, spacing=5)
    return sheet


def look(source: Source, index: int) -> tuple[Image.Image | None, str]:
    """Read a sample: its image padded to the square, or None if it cannot be decoded, and its first caption."""
    caption = ""
    try:
        sample = source[index]
        caption = next(iter(sample.captions), "")
        return in_square(open_image(sample.image, sample.key)), caption
    except UserError:
        return None, caption


def in_square(image: Image.Image) -> Image.Image:
    """Resize an image to fit the square, and centre it there; `ImageOps.pad` of Pillow 12.3 fails for thin strips."""
    width, height = (max(1, round(SIDE * length / max(image.size))) for length in image.size)
    square = Image.new("RGB", (SIDE, SIDE), FRAME)
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((SIDE - width) // 2, (SIDE - height) // 2))
    return square
