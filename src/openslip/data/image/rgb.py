"""Images of any mode to 8-bit RGB: bit depth, transparency, and EXIF orientation."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.Image import Transpose

from openslip.errors import UserError

# EXIF's 2 to 8: how the stored pixels must be turned to stand upright.
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
SETTINGS = {"transparency": ("white", "ignore"), "exif": ("apply", "ignore")}
UNKNOWN_RANGE = "whose black and white are not known; save it with 8 or 16 bits per channel"


@dataclass(frozen=True)
class ToRgb:
    """The conversion of an image to RGB; docs/NUMERICS.md#pixels. With both on `ignore`, as the published loaders.

    Args:
        transparency: None or `white`: the image is composited on white; `ignore`: its transparency is dropped, which
            shows the colours of invisible pixels, mostly black.
        exif: `apply`: the image is turned upright; None or `ignore`: its pixels stay as they are stored.
    """

    transparency: str | None = None
    exif: str | None = None

    def __post_init__(self) -> None:
        for name, known in SETTINGS.items():
            if (value := getattr(self, name)) not in (None, *known):
                raise UserError(f"{name}={value}: expected {' or '.join(known)}")

    def __call__(self, image: Image.Image) -> Image.Image:
        """The loaded image in RGB, itself where nothing is to be done.

        Raises:
            UserError: 32-bit integers or floats, of which nobody can say what is black and what is white.
        """
        turn = UPRIGHT.get(orientation(image)) if self.exif == "apply" else None
        image = self.composited(with_8_bits(image))
        if turn is None:
            return image
        upright = image.transpose(turn)
        upright.info = {}  # it would tell the orientation again
        return upright

    def composited(self, image: Image.Image) -> Image.Image:
        """An 8-bit image in RGB, on white or without its transparency."""
        if not image.has_transparency_data:
            return image if image.mode == "RGB" else image.convert("RGB")
        if self.transparency == "ignore":
            # Pillow warns of a palette's direct way.
            return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        return ground.convert("RGB")

    def settings(self) -> dict[str, str]:
        """The arguments that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) to 8; 1 where there is none or the EXIF is damaged."""
    with suppress(Exception):  # Pillow raises a dozen types on damaged EXIF
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in UPRIGHT else 1
    return 1


def with_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 (or a TIFF's 12) bits scaled to 8, rounded down; Pillow alone would clip all above 255 to white.

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
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        levels = 255 - levels
    grey = Image.fromarray(levels)
    if "transparency" in image.info:  # of PNG: the grey that is invisible
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey
