"""An image's bytes: read from where they lie, checked by decoding, and scaled down if that is asked."""

import errno
import io
import zipfile
import zlib
from functools import lru_cache

from PIL import Image

from openslip.data.convert.record import Picture, PictureFile, PictureSlice
from openslip.data.image.decode import FORMATS, MAX_PIXELS, to_rgb
from openslip.errors import UserError
from openslip.regular_file import regular_file

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a JPEG followed by more of them
QUALITY = 95  # img2dataset's; photographs come back with their brightness right to 43 dB, at 90 to 40 dB
_BROKEN_STORAGE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnusableError(Exception):
    """The one image cannot be used; the message is the reason's category."""


def read_image(picture: Picture) -> bytes:
    """The image's bytes; failing storage is a UserError, because what lies on it may be fine."""
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


@lru_cache(maxsize=1)  # the images of a shard are neighbours in an archive
def open_archive(path: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(regular_file(path))


def convert_image(data: bytes, resize: int | None) -> tuple[str, bytes]:
    """Suffix and bytes of an image in a shard; a JPEG, PNG or WebP that need not be scaled down keeps its bytes.

    Every image is decoded, so that what lies in a shard can be. EXIF is not carried over: its rotation is ignored in
    training, and the pixels are stored as they are. `resize` is the short side in pixels of images that are larger.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UnusableError(f"more than {MAX_PIXELS:,} pixels")
        short = min(image.size)
        target = min(short, resize or short)
        suffix = SUFFIXES.get(image.format or "")
        if suffix and target == short:
            image.draft("L", (1, 1))  # JPEG: reads all of the data, but computes an eighth of the pixels
            image.load()
            return suffix, data
        if target < short:
            width, height = (max(1, int(target * side / short)) for side in image.size)
            # JPEG decodes to halves, quarters and eighths at less cost; twice the target keeps the filter's quality.
            image.draft("RGB", (2 * width, 2 * height))
            image = to_rgb(image).resize((width, height), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        # Full colour resolution: halving it, as is usual, costs a photograph more than the rest of the encoding does.
        to_rgb(image).save(stream, "JPEG", quality=QUALITY, subsampling="4:4:4")
        return "jpg", stream.getvalue()
    except UnusableError:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableError(f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise UnusableError("image that cannot be decoded") from error
