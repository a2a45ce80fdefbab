"""Bytes of an image to pixels, and boxes cut out of them: by Pillow, the reference, or by libjpeg-turbo."""

import io
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image
from torch.nn.functional import interpolate

from openslip.errors import UserError
from openslip.regular_file import regular_file

MAX_PIXELS = 50_000_000
# Named, because Pillow's full list holds decoders that start other programs (EPS) or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class PillowDecoder:
    """The reference: pixel by pixel what the published loaders and torchvision's crops on PIL images give."""

    name = "pillow"  # part of a run's fingerprint: decoders differ in the last bit of a pixel

    def decode(self, data: bytes, name: str) -> Image.Image:
        """The image in RGB; `name` is what an error calls it. Raises UserError as `open_image` does."""
        return open_image(data, name)

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

    What is no ordinary JPEG (four channels, other formats, damage of any kind) is left to Pillow, whose judgement of a
    damaged image and whose message therefore hold for both decoders.
    """

    name = "turbo"

    def decode(self, data: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
        """As PillowDecoder's."""
        if data.startswith(b"\xff\xd8"):
            try:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
                if int(height) * int(width) <= MAX_PIXELS and colours in ("YCbCr", "RGB", "Gray"):
                    return simplejpeg.decode_jpeg(data)
            except ValueError:  # raised for what libjpeg only warns of, too, and some of that is harmless
                pass
        return np.array(open_image(data, name))

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


def open_image(source: bytes | str | Path, name: str) -> Image.Image:
    """Decode one image to RGB; transparency is dropped and EXIF rotation ignored, as in the published loaders.

    `name` is what an error calls the image. Raises UserError when it has more than 50 million pixels (known from its
    header, before anything is decoded) or cannot be decoded whole.
    """
    try:
        # Bytes in any case: of a file with several frames Pillow would keep the descriptor.
        data = source if isinstance(source, bytes) else regular_file(source).read_bytes()
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height <= MAX_PIXELS:
            image.load()
            return image if image.mode == "RGB" else to_rgb(image)
        size = f"{image.width} x {image.height}"
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = "too many pixels"
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files, SyntaxError among them
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"not an image in one of the formats {', '.join(FORMATS)}"
        raise UserError(f"{name}: cannot be decoded ({reason}); replace or remove it") from error
    raise UserError(f"{name}: {size}, more than {MAX_PIXELS:,} pixels are refused; scale it down first")


def to_rgb(image: Image.Image) -> Image.Image:
    """Transparency is dropped, 16 bits are scaled to 8."""
    if image.mode.startswith("I;16"):  # Pillow would clip all above 255 to white
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way
    return image.convert("RGB")
