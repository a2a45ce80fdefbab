"""What every section is made of: escaped text, short numbers, coloured tables, images."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from openslip.report.run_files import check
from openslip.terminal import printable

Pixels = np.ndarray  # uint8 [3, H, W]


def escape(text: object) -> str:
    """Text as HTML shows it literally, lines kept, and control characters as `printable` shows them."""
    return html.escape("\n".join(map(printable, str(text).split("\n"))))


def percent(value: float) -> str:
    """A percentage to one decimal, or to two digits below 1 %."""
    return f"{value:.1f} %" if value >= 1 or value == 0 else f"{value:.2g} %"


def short(value: float) -> str:
    """12000 as 12k, 3000000 as 3M."""
    for limit, factor, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / factor:.4g}{letter}"
    return f"{value:.4g}"


def heat(strength: float, text: str, hint: str, *, diagonal: bool) -> str:
    """A cell whose colour lies over the page's own, so that it works on light and dark."""
    strength = min(max(strength, 0.0), 1.0)
    classes = " ".join(
        name for name, holds in (("strong", strength > 0.75), ("diagonal", diagonal), ("zero", strength == 0)) if holds
    )
    return f'<td class="{classes}" style="--h:{strength:.2f}" title="{escape(hint)}">{text}</td>'


def matrix(kind: str, head: Iterable[str], rows: Sequence[tuple[str, Iterable[str]]]) -> str:
    """A table of heat cells: heads of the columns, and per row its own head and its cells."""
    body = "".join(f'<tr><th scope="row">{row}</th>{"".join(cells)}</tr>' for row, cells in rows)
    return f'<table class="matrix{kind}"><thead><tr><td></td>{"".join(head)}</tr></thead><tbody>{body}</tbody></table>'


def image_tag(pixels: Pixels, alt: str) -> str:
    """An `img` that holds its own data."""
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
