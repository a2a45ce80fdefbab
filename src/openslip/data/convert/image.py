"""Read an image's bytes from the dataset, check them by decoding, and scale the image down if requested."""

import errno
import io
import zipfile
import zlib
from functools import lru_cache

from PIL import ExifTags, Image

from openslip.data.convert.record import Picture, PictureFile, PictureSlice
from openslip.data.image.decode import MAX_PIXELS
from openslip.data.image.formats import FORMATS
from openslip.data.image.rgb import ToRgb, orientation
from openslip.errors import UserError
from openslip.regular_file import regular_file

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a JPEG followed by further JPEGs
QUALITY = 95  # as in img2dataset; the luma of photographs keeps a PSNR of 43 dB, at quality 90 one of 40 dB
MAX_JPEG_SIDE = 65_500  # libjpeg's limit
_BROKEN_STORAGE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnusableError(Exception):
    """An image cannot be used; the message is a category of reasons."""


def read_image(picture: Picture) -> bytes:
    """Read the bytes of an image.

    Raises:
        UnusableError: the image is missing or cannot be read.
        UserError: the storage fails, so that the image itself may be fine.
    """
    try:
        match picture:
            case PictureFile(path):
                with open(regular_file(path), "rb") as file:
                    return file.read()
            case PictureSlice(path, offset, size):
                with open(regular_file(path), "rb") as file:
                    file.seek(offset)
                    return file.read(size)
            case _:
                return open_archive(picture.path).read(picture.member)
    except UserError as error:
        raise UnusableError("image file that cannot be opened") from error
    except (KeyError, FileNotFoundError, ValueError) as error:  # ValueError: a NUL in a path
        raise UnusableError("missing image") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UnusableError("zip archive that cannot be read") from error
    except OSError as error:
        if error.errno in _BROKEN_STORAGE:
            raise UserError(
                f"{picture.path}: {error.strerror}; when the storage works again, the same command resumes"
            ) from error
        raise UnusableError("image file that cannot be opened") from error


@lru_cache(maxsize=1)  # successive images of a shard mostly come from the same archive
def open_archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(regular_file(path))


def convert_image(data: bytes, resize: int | None, transparency: str | None = None) -> tuple[str, bytes]:
    """Convert an image for a shard, to its suffix and bytes; a JPEG, PNG or WebP that is not resized keeps its bytes.

    Every image is decoded, so that all images in a shard are known to be decodable. Pixels are not turned upright, but
    the EXIF orientation is kept, so that training can apply or ignore it as for images that keep their bytes.

    Args:
        data: content of the image file.
        resize: short side in pixels to which larger images are scaled; None scales none.
        transparency: conversion of images that become JPEGs, as in `ToRgb`.

    Raises:
        UnusableError: the image is too large or cannot be decoded.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=[*FORMATS])
        if image.width * image.height > MAX_PIXELS:
            raise UnusableError(f"more than {MAX_PIXELS:,} pixels")
        short = min(image.size)
        target = min(short, resize or short)
        suffix = SUFFIXES.get(image.format or "")
        if suffix and target == short:
            image.draft("L", (1, 1))  # JPEG: reads all data, but decodes at an eighth of the size
            image.load()
            return suffix, data
        width, height = (max(1, int(target * side / short)) for side in image.size)
        if max(width, height) > MAX_JPEG_SIDE:
            raise UnusableError(f"more than {MAX_JPEG_SIDE:,} pixels in a row or column, which a JPEG cannot hold")
        if target < short:
            # JPEG decodes faster to 1/2, 1/4 or 1/8 of the size; twice the target size keeps the filter's quality.
            image.draft("RGB", (2 * width, 2 * height))
        image.load()
        pixels = ToRgb(transparency)(image)
        if target < short:
            pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        if (turn := orientation(image)) != 1:
            exif[ExifTags.Base.Orientation] = turn
        stream = io.BytesIO()
        # No chroma subsampling: the usual 4:2:0 costs a photograph more quality than the rest of the encoding.
        pixels.save(stream, "JPEG", quality=QUALITY, subsampling="4:4:4", exif=exif if len(exif) else b"")
        return "jpg", stream.getvalue()
    except UnusableError:
        raise
    except UserError as error:  # pixels that cannot be converted to 8 bits
        raise UnusableError(str(error).partition(";")[0]) from error
    except Image.DecompressionBombError as error:
        raise UnusableError(f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise UnusableError("image that cannot be decoded") from error
