"""Pictures of a collection with their captions, on one page."""

from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from openslip.data.image.decode import open_image
from openslip.data.source import Source
from openslip.durable import durable
from openslip.errors import UserError

COLUMNS, ROWS = 6, 4
SIDE = 224  # of the square that a picture is fitted in, in pixels
PADDING, GAP = 12, 16  # inside a card, and between cards
LINES, LINE_HEIGHT, FONT_SIZE = 4, 19, 14
PAPER, CARD, FRAME, INK, FAINT = "#e9e9e6", "#ffffff", "#f3f3f1", "#222222", "#8a8a86"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MAX_LETTERS = 300  # of a caption; more than fit in its lines


def write_contact_sheet(source: Source, path: Path) -> None:
    """Evenly spaced samples, left to right and top to bottom.

    Raises:
        UserError: the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"contact sheet {path}: expected a name that ends in .png or .jpg")
    try:
        with durable(path) as file:
            draw_contact_sheet(source).save(file, FORMATS[path.suffix.lower()], quality=92)
    except OSError as error:
        raise UserError(f"contact sheet {path} cannot be written ({error.strerror}): name another file") from error


def draw_contact_sheet(source: Source) -> Image.Image:
    """A card each; the cards of a row are as high as the longest caption among them asks for."""
    # Pillow's own font has no accents; Matplotlib's has the alphabets, and boxes for what it lacks.
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT_SIZE)
    count = min(COLUMNS * ROWS, len(source))
    cells = [look(source, cell * len(source) // count) for cell in range(count)]
    texts = [wrapped(caption or "no caption", font, SIDE, LINES) for _, caption in cells]
    rows = [range(start, min(start + COLUMNS, count)) for start in range(0, count, COLUMNS)]
    heights = [SIDE + 3 * PADDING + LINE_HEIGHT * max(len(texts[cell]) for cell in row) for row in rows]
    width = SIDE + 2 * PADDING
    size = (GAP + min(COLUMNS, count) * (width + GAP), GAP + sum(height + GAP for height in heights))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            picture, caption = cells[cell]
            left = GAP + column * (width + GAP)
            draw.rounded_rectangle((left, top, left + width - 1, top + height - 1), 8, CARD)
            x, y = left + PADDING, top + PADDING
            draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), FRAME)
            if picture is None:
                draw.text((x + SIDE / 2, y + SIDE / 2), "cannot be decoded", FAINT, font, anchor="mm")
            else:
                sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
            for number, line in enumerate(texts[cell]):
                where = (x, y + SIDE + PADDING + number * LINE_HEIGHT)
                draw.text(where, line, INK if caption else FAINT, font)
        top += height + GAP
    return sheet


def look(source: Source, index: int) -> tuple[Image.Image | None, str]:
    """A sample's picture in its square, and its first caption."""
    try:
        sample = source[index]
    except UserError:
        return None, ""
    caption = sample.captions[0] if sample.captions else ""
    try:
        return fitted(open_image(sample.image, sample.key)), caption
    except UserError:
        return None, caption


def fitted(picture: Image.Image) -> Image.Image:
    """As large as the square allows."""
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Lines no wider than so many pixels; words longer than a line are broken, and what is over ends in dots."""
    found, line = [], ""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    for word in text[:MAX_LETTERS].split():
        for piece in pieces(word, font, width):
            longer = f"{line} {piece}" if line else piece
            if font.getlength(longer) <= width:
                line = longer
            else:
                found.append(line)
                line = piece
    found.append(line)
    if len(found) <= lines and len(text) <= MAX_LETTERS:
        return found
    last = found[lines - 1] if len(found) >= lines else found[-1]
    while font.getlength(last + "...") > width:
        last = last[:-1]
    return [*found[: min(lines, len(found)) - 1], last.rstrip() + "..."]


def pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    found = []
    while font.getlength(word) > width:
        end = next(end for end in range(len(word) - 1, 0, -1) if font.getlength(word[:end]) <= width)
        found.append(word[:end])
        word = word[end:]
    return [*found, word]
