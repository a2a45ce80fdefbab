"""What every section is made of: escaped text, short numbers, coloured cells, pictures."""

import base64
import html
import io

import numpy as np
from PIL import Image

from openslip.report.run_files import check

Pixels = np.ndarray  # uint8 [3, H, W]


def escape(text: object) -> str:
    """Text as HTML shows it literally."""
    return html.escape(str(text))


def percent(value: float) -> str:
    """A percentage to one decimal, or to two digits below 1 %."""
    return f"{value:.1f} %" if value >= 1 or value == 0 else f"{value:.2g} %"


def short(value: float) -> str:
    """12000 as 12k, 3000000 as 3M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}"
    return f"{value:.4g}"


def heat(strength: float, text: str, hint: str, *, diagonal: bool) -> str:
    """A cell whose colour lies over the page's own, so that it works on light and dark."""
    strength = min(max(strength, 0.0), 1.0)
    classes = " ".join(
        name for name, holds in (("strong", strength > 0.75), ("diagonal", diagonal), ("zero", strength == 0)) if holds
    )
    return f'<td class="{classes}" style="--h:{strength:.2f}" title="{escape(hint)}">{text}</td>'


def image_tag(pixels: Pixels, alt: str) -> str:
    """A picture as an `img` that holds its own data."""
    check(pixels.ndim == 3 and len(pixels) == 3 and pixels.dtype == np.uint8, "a picture is not uint8 [3, H, W]")
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    stream = io.BytesIO()
    small = max(image.size) <= 64
    if small:
        image.save(stream, "PNG")
    else:
        image.thumbnail((192, 192))
        image.save(stream, "JPEG", quality=85)
    kind, shape = ("png", ' class="pixels"') if small else ("jpeg", "")
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img{shape} src="data:image/{kind};base64,{data}" alt="{escape(alt)}" {size}>'
