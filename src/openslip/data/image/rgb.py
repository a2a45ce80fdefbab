"""Conversion of images of any mode to 8-bit RGB: bit depth, transparency and EXIF orientation."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose

from openslip.data.image.settings import SETTINGS
from openslip.errors import UserError

# EXIF orientations 2 to 8, and the operation that turns the stored pixels upright.
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
UNKNOWN_RANGE = "whose black and white are not known; save it with 8 or 16 bits per channel"


@dataclass(frozen=True)
class ToRgb:
    """Converter of images to RGB; with `ignore` for both arguments, as in the published loaders.

    See docs/NUMERICS.md#pixels.

    Args:
        transparency: `white` (or None) composites the image on white; `ignore` drops its transparency, which shows the
            colours of invisible pixels, mostly black.
        exif: `apply` turns the image upright; `ignore` (or None) keeps its pixels as they are stored.
    """

    transparency: str | None = None
    exif: str | None = None

    def __post_init__(self) -> None:
        for name, known in SETTINGS.items():
            if (value := getattr(self, name)) not in (None, *known):
                raise UserError(f"{name}={value}: expected {' or '.join(known)}")

    def __call__(self, image: Image.Image) -> Image.Image:
        """Convert a loaded image to RGB; returns the same object if nothing has to change.

        Raises:
            UserError: the pixels are 32-bit integers or floats, whose values for black and white are unknown.
        """
        turn = UPRIGHT.get(orientation(image)) if self.exif == "apply" else None
        image = self.composited(with_8_bits(image))
        if turn is None:
            return image
        upright = image.transpose(turn)
        upright.info = {}  # it still holds the orientation of the stored pixels
        return upright

    def composited(self, image: Image.Image) -> Image.Image:
        """Convert an 8-bit image to RGB, composited on white or without its transparency."""
        if not image.has_transparency_data:
            return image if image.mode == "RGB" else image.convert("RGB")
        if self.transparency == "ignore":
            # Pillow warns when a palette with transparency is converted directly to RGB.
            return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        return ground.convert("RGB")

    def settings(self) -> dict[str, str]:
        """Arguments of the constructor that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 if the image has none or its EXIF is damaged."""
    with suppress(Exception):  # Pillow raises a dozen types on damaged EXIF
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in UPRIGHT else 1
    return 1


def with_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (12-bit in some TIFFs) to 8 bits, rounding down; Pillow would clip values above 255 to white.

    Pillow itself keeps the high byte of 16-bit colours, and stretches every 16-bit PGM to 65,535.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point pixels" if image.mode == "F" else "32-bit integer pixels"
        raise UserError(f"{kind} (mode {image.mode}), {UNKNOWN_RANGE}")
    if not image.mode.startswith("I"):
        return image
    tags: dict[int, Any] = dict(getattr(image, "tag_v2", {}))
    (bits,) = tags.get(ExifTags.Base.BitsPerSample, (16,))
    values = np.asarray(image).astype(np.uint32)
    levels = (values * 255 // (2**bits - 1)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 means that white is zero
        levels = 255 - levels
    grey = Image.fromarray(levels)
    if "transparency" in image.info:  # in a PNG: the grey value that is transparent
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey
