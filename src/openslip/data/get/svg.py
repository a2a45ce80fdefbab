"""Drawings in SVG: their metadata, and their pixels, for which the extra `real` installs a renderer."""

import io
from typing import NamedTuple
from xml.etree import ElementTree

from PIL import Image

from openslip.errors import MissingPackage

DC = "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
CC = "{http://web.resource.org/cc/}"
# CSS pixels per inch, for sizes in mm or pt: with resvg's own default of 0, such drawings have no size.
DPI = 96.0


class Metadata(NamedTuple):
    """What the RDF block of a drawing says; texts are stripped, and empty if they are missing."""

    title: str
    keywords: tuple[str, ...]
    licence: str  # address of the licence


def metadata(content: bytes) -> Metadata:
    """Read the RDF block of a drawing (W3C's RDF in SVG, with Dublin Core and Creative Commons' terms)."""
    work = ElementTree.fromstring(content).find(f".//{CC}Work")
    if work is None:
        return Metadata("", (), "")
    licence = work.find(f"{CC}license")
    keywords = [text(item) for subject in work.iter(f"{DC}subject") for item in subject.iter(f"{RDF}li")]
    address = "" if licence is None else licence.get(f"{RDF}resource", "")
    return Metadata(text(work.find(f"{DC}title")), tuple(filter(None, keywords)), address)


def text(element: ElementTree.Element | None) -> str:
    return "" if element is None else " ".join((element.text or "").split())


def rasterise(content: bytes, side: int) -> Image.Image | None:
    """Render a drawing on a white square; margins around what is drawn are cut off.

    Args:
        content: the SVG file.
        side: side of the square in pixels.

    Returns:
        The image, or None if the renderer refuses the file or nothing is drawn.

    Raises:
        MissingPackage: the renderer is not installed.
    """
    try:
        import resvg_py  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingPackage("SVG drawings need a renderer: pip install 'openslip[real]'") from error
    try:
        # Twice the size, because the margins are not known yet.
        png = resvg_py.svg_to_bytes(svg_string=content.decode(), width=2 * side, dpi=DPI, skip_system_fonts=True)
    except ValueError:  # as it reports any file that it cannot render
        return None
    drawing = Image.open(io.BytesIO(png)).convert("RGBA")
    drawn = drawing.getchannel("A").getbbox()
    if drawn is None:
        return None
    drawing = drawing.crop(drawn)
    drawing.thumbnail((side, side), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (side, side), "white")
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2), drawing)
    return square
