"""Bytes of an image to pixels, and boxes cut out of them: by Pillow, the reference, or by libjpeg-turbo."""

import io
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image
from torch.nn.functional import interpolate

from openslip.data.image.formats import FORMATS
from openslip.data.image.rgb import ToRgb
from openslip.errors import UserError
from openslip.regular_file import regular_file

MAX_PIXELS = 50_000_000

AS_USUAL = ToRgb()
MAY_BE_TURNED = (b"Exif", b"http://ns.adobe.com/xap/")  # where a JPEG's orientation can be written

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class PillowDecoder:
    """The reference: pixel by pixel what the published loaders and torchvision's crops on PIL images give.

    Args:
        transparency: None or `white`: transparent images lie on white; `ignore`: as published.
        exif: `apply` turns images upright; None or `ignore`: as published.
    """

    name = "pillow"  # part of a run's fingerprint: decoders differ in the last bit of a pixel

    def __init__(self, transparency: str | None = None, exif: str | None = None) -> None:
        self.to_rgb = ToRgb(transparency, exif)

    def decode(self, data: bytes, name: str) -> Image.Image:
        """The image in RGB; `name` is what an error calls it. Raises UserError as `open_image` does."""
        return open_image(data, name, self.to_rgb)

    def size(self, image: Image.Image) -> tuple[int, int]:
        """Width and height."""
        return image.size

    def crop(self, image: Image.Image, box: Box, side: int) -> UInt8[np.ndarray, "3 side side"]:
        """The box scaled to a square, bilinear with antialiasing; contiguous, and nothing outside the box is seen."""
        # Not resize(box=...): its filter reaches beyond the box, torchvision's crop does not.
        crop = image.crop(box).resize((side, side), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.frombuffer(crop.tobytes(), np.uint8).reshape(side, side, 3).transpose(2, 0, 1))


class TurboDecoder:
    """Pillow's pixels, and its crops but for one level here and there, in less than half the time.

    What is no ordinary JPEG (four channels, other formats, to be turned, damage of any kind) is left to Pillow, whose
    judgement of a damaged image and whose message therefore hold for both decoders. The arguments are PillowDecoder's.
    """

    name = "turbo"

    def __init__(self, transparency: str | None = None, exif: str | None = None) -> None:
        self.to_rgb = ToRgb(transparency, exif)

    def decode(self, data: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
        """As PillowDecoder's."""
        turned = self.to_rgb.exif == "apply" and any(mark in data[: 1 << 17] for mark in MAY_BE_TURNED)
        if data.startswith(b"\xff\xd8") and not turned:
            try:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
                if int(height) * int(width) <= MAX_PIXELS and colours in ("YCbCr", "RGB", "Gray"):
                    return simplejpeg.decode_jpeg(data)
            except ValueError:  # raised for what libjpeg only warns of, too, and some of that is harmless
                pass
        return np.array(open_image(data, name, self.to_rgb))

    def size(self, image: UInt8[np.ndarray, "height width 3"]) -> tuple[int, int]:
        """As PillowDecoder's."""
        return image.shape[1], image.shape[0]

    def crop(self, image: UInt8[np.ndarray, "height width 3"], box: Box, side: int) -> UInt8[np.ndarray, "3 side side"]:
        """As PillowDecoder's."""
        left, top, right, bottom = box
        # Contiguous with the colours innermost: torch scales no other layout without a slower copy into this one.
        inside = torch.from_numpy(np.ascontiguousarray(image[top:bottom, left:right]))
        scaled = interpolate(inside[None].permute(0, 3, 1, 2), (side, side), mode="bilinear", antialias=True)
        return np.ascontiguousarray(scaled[0].numpy())  # numpy parts the colours in half of torch's time


Decoder = PillowDecoder | TurboDecoder


def open_image(source: bytes | str | Path, name: str, to_rgb: ToRgb = AS_USUAL) -> Image.Image:
    """Decode one image to RGB; `name` is what an error calls the image.

    Raises:
        UserError: it has more than 50 million pixels (known from its header, before anything is decoded), cannot be
            decoded whole, or holds pixels that have no meaning as 8 bits.
    """
    if not isinstance(source, bytes):
        regular_file(source)
    try:
        # Bytes in any case: of a file with several frames Pillow would keep the descriptor.
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        image = Image.open(io.BytesIO(data), formats=[*FORMATS])
        if image.width * image.height <= MAX_PIXELS:
            image.load()
            return to_rgb(image)
        size = f"{image.width} x {image.height}"
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = "too many pixels"
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files, SyntaxError among them
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"not an image in one of the formats {', '.join(FORMATS)}"
        raise UserError(f"{name}: cannot be decoded ({reason}); replace or remove it") from error
    raise UserError(f"{name}: {size}, more than {MAX_PIXELS:,} pixels are refused; scale it down first")
