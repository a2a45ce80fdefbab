"""HTML parts that sections share: escaped text, short numbers, coloured tables, images."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from openslip.report.run_files import check
from openslip.terminal import printable

Pixels = np.ndarray  # uint8 [3, H, W]


def escape(text: object) -> str:
    """Escape text for HTML; line breaks are kept, control characters are replaced by `printable`."""
    return html.escape("\n".join(map(printable, str(text).split("\n"))))


def percent(value: float) -> str:
    """Format a percentage with one decimal, or with two significant digits below 1 %."""
    return f"{value:.1f} %" if value >= 1 or value == 0 else f"{value:.2g} %"


def short(value: float, largest: float | None = None, digits: int = 4) -> str:
    """Format a number briefly, such as 12000 as 12k and 3000000 as 3M.

    Args:
        value: the number.
        largest: the number whose unit is used; None for the number itself.
        digits: number of significant digits.
    """
    for limit, factor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value and abs(value if largest is None else largest) >= limit:
            return f"{value / factor:.{digits}g}{letter}"
    return f"{value:.{digits}g}".replace("e-0", "e-")


def exact(value: float) -> str:
    """Format a number with all digits before the point, or four significant ones."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}".replace("e-0", "e-")


def duration(seconds: float) -> str:
    """Format seconds in their two largest units, such as `2 h 5 min`."""
    seconds = round(seconds)
    for (unit, size), (smaller, small) in pairwise((("d", 86400), ("h", 3600), ("min", 60), ("s", 1))):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // small} {smaller}"
    return f"{seconds} s"


def file_size(size: int) -> str:
    """Format a file's size."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def heat(strength: float, text: str, hint: str, *, diagonal: bool) -> str:
    """Return a table cell with a translucent colour, so that it works in light and dark mode.

    Args:
        strength: opacity of the colour, from 0 to 1.
        text: HTML of the cell.
        hint: text that is shown when the mouse is over the cell.
        diagonal: whether the cell is framed.
    """
    strength = min(max(strength, 0.0), 1.0)
    classes = " ".join(
        name for name, holds in (("strong", strength > 0.75), ("diagonal", diagonal), ("zero", strength == 0)) if holds
    )
    return f'<td class="{classes}" style="--h:{strength:.2f}" title="{escape(hint)}">{text}</td>'


def matrix(kind: str, head: Iterable[str], rows: Sequence[tuple[str, Iterable[str]]]) -> str:
    """Return a table of heat cells.

    Args:
        kind: further CSS classes of the table, each with a space before it.
        head: HTML of the column headers.
        rows: HTML of each row's header and of its cells.
    """
    body = "".join(f'<tr><th scope="row">{row}</th>{"".join(cells)}</tr>' for row, cells in rows)
    return f'<table class="matrix{kind}"><thead><tr><td></td>{"".join(head)}</tr></thead><tbody>{body}</tbody></table>'


def image_tag(pixels: Pixels, alt: str) -> str:
    """Return an `img` element with embedded data."""
    check(pixels.ndim == 3 and len(pixels) == 3 and pixels.dtype == np.uint8, "an image is not uint8 [3, H, W]")
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    is_small = max(image.size) <= 64
    kind, shape = ("png", ' class="pixels"') if is_small else ("jpeg", "")
    if not is_small:
        image.thumbnail((192, 192))
    stream = io.BytesIO()
    image.save(stream, kind, quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img{shape} src="data:image/{kind};base64,{data}" alt="{escape(alt)}" {size}>'
