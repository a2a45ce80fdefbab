"""Image decoders, which also crop: Pillow, the reference, and libjpeg-turbo."""

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
MAY_BE_TURNED = (b"Exif", b"http://ns.adobe.com/xap/")  # headers of the metadata that can state a JPEG's orientation

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class PillowDecoder:
    """Reference decoder: the exact pixels of the published loaders and of torchvision's crops of PIL images.

    Args:
        transparency: `white` (or None) composites transparent images on white; `ignore` drops the transparency, as the
            published loaders do.
        exif: `apply` turns images upright; `ignore` (or None) does not, as the published loaders.
    """

    name = "pillow"  # part of a run's fingerprint: decoders differ in the last bit of a pixel

    def __init__(self, transparency: str | None = None, exif: str | None = None) -> None:
        self.to_rgb = ToRgb(transparency, exif)

    def decode(self, data: bytes, name: str) -> Image.Image:
        """Decode an image to RGB; `name` is what an error calls the image. Raises UserError as `open_image` does."""
        return open_image(data, name, self.to_rgb)

    def size(self, image: Image.Image) -> tuple[int, int]:
        """Width and height in pixels."""
        return image.size

    def crop(self, image: Image.Image, box: Box, side: int) -> UInt8[np.ndarray, "3 side side"]:
        """Scale a box to a contiguous square, bilinear with antialiasing; pixels outside the box have no effect."""
        # resize(box=...) will not do: its filter reaches beyond the box, unlike torchvision's crop.
        crop = image.crop(box).resize((side, side), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.frombuffer(crop.tobytes(), np.uint8).reshape(side, side, 3).transpose(2, 0, 1))


class TurboDecoder:
    """libjpeg-turbo decoder: Pillow's pixels, and crops that differ by one level in places, in under half the time.

    Only ordinary, intact JPEGs are decoded here. Pillow decodes all others (four channels, other formats, images to be
    turned upright, damage of any kind), so both decoders refuse the same images with the same messages. The arguments
    are those of PillowDecoder.
    """

    name = "turbo"

    def __init__(self, transparency: str | None = None, exif: str | None = None) -> None:
        self.to_rgb = ToRgb(transparency, exif)

    def decode(self, data: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
        """Decode an image to RGB; `name` is what an error calls the image. Raises UserError as `open_image` does."""
        turned = self.to_rgb.exif == "apply" and any(mark in data[: 1 << 17] for mark in MAY_BE_TURNED)
        if data.startswith(b"\xff\xd8") and not turned:
            try:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
                if int(height) * int(width) <= MAX_PIXELS and colours in ("YCbCr", "RGB", "Gray"):
                    return simplejpeg.decode_jpeg(data)
            except ValueError:  # simplejpeg raises it for mere warnings of libjpeg, too, some of them harmless
                pass
        return np.array(open_image(data, name, self.to_rgb))

    def size(self, image: UInt8[np.ndarray, "height width 3"]) -> tuple[int, int]:
        """Width and height in pixels."""
        return image.shape[1], image.shape[0]

    def crop(self, image: UInt8[np.ndarray, "height width 3"], box: Box, side: int) -> UInt8[np.ndarray, "3 side side"]:
        """Scale a box to a contiguous square, bilinear with antialiasing; pixels outside the box have no effect."""
        left, top, right, bottom = box
        # Contiguous with the channels innermost: torch would copy any other layout to this one, more slowly.
        inside = torch.from_numpy(np.ascontiguousarray(image[top:bottom, left:right]))
        scaled = interpolate(inside[None].permute(0, 3, 1, 2), (side, side), mode="bilinear", antialias=True)
        return np.ascontiguousarray(scaled[0].numpy())  # numpy separates the channels in half of torch's time


Decoder = PillowDecoder | TurboDecoder


def open_image(source: bytes | str | Path, name: str, to_rgb: ToRgb = AS_USUAL) -> Image.Image:
    """Decode one image to RGB; `name` is what an error calls the image.

    Raises:
        UserError: the image has more than 50 million pixels (checked in its header, before decoding), cannot be decoded
            completely, or has pixels that cannot be converted to 8 bits.
    """
    if not isinstance(source, bytes):
        regular_file(source)
    try:
        # Always bytes: Pillow would keep a file with several frames open.
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
