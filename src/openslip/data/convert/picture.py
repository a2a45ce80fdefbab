"""A picture's bytes: read from where they lie, checked by decoding, made smaller if that is asked."""

import errno
import io
import zipfile
import zlib
from dataclasses import dataclass

from PIL import Image

from openslip.data.convert.record import Picture, PictureFile, PictureSlice
from openslip.data.image.decode import FORMATS, MAX_PIXELS, to_rgb
from openslip.errors import UserError

SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a JPEG followed by more of them
_BROKEN_STORAGE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnusableError(Exception):
    """The one picture cannot be used; the message is the reason's category."""


class PictureReader:
    """Reads pictures; keeps the last archive open, because a shard's pictures are neighbours in it."""

    def __init__(self) -> None:
        self.archive: zipfile.ZipFile | None = None
        self.archive_path = ""

    def __enter__(self) -> "PictureReader":
        return self

    def __exit__(self, *error: object) -> None:
        if self.archive is not None:
            self.archive.close()

    def read(self, picture: Picture) -> bytes:
        """The bytes.

        Raises:
            UnusableError: there is no such picture.
            UserError: the storage fails; what lies on it may be fine, so nothing is left out for that.
        """
        try:
            match picture:
                case PictureFile(path):
                    with open(path, "rb") as file:
                        return file.read()
                case PictureSlice(path, offset, size):
                    with open(path, "rb") as file:
                        file.seek(offset)
                        return file.read(size)
                case _:
                    return self.open_archive(picture.path).read(picture.member)
        except (KeyError, FileNotFoundError) as error:
            raise UnusableError("missing picture") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise UnusableError("zip archive that cannot be read") from error
        except ValueError as error:  # a NUL in a path
            raise UnusableError("missing picture") from error
        except OSError as error:
            if error.errno in _BROKEN_STORAGE:
                raise UserError(
                    f"{picture.path}: {error.strerror}; when the storage is well, the same command goes on"
                ) from error
            raise UnusableError("picture file that cannot be opened") from error

    def open_archive(self, path: str) -> zipfile.ZipFile:
        if self.archive is None or path != self.archive_path:
            archive = zipfile.ZipFile(path)
            if self.archive is not None:
                self.archive.close()
            self.archive, self.archive_path = archive, path
        return self.archive


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are written.

    Attributes:
        resize: short side in pixels of those that are larger; None leaves all as they are.
        quality: JPEG quality of those that are encoded anew.
    """

    resize: int | None
    quality: int

    def apply(self, data: bytes) -> tuple[str, bytes]:
        """Suffix and bytes; the very bytes of a JPEG, PNG or WebP that need not be made smaller.

        Every picture is decoded, so that what stands in a shard can be. EXIF is not carried over: its rotation is
        ignored in training, and the pixels are stored as they are.

        Raises:
            UnusableError: not a picture, cut off, or more pixels than training takes.
        """
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnusableError(f"more than {MAX_PIXELS:,} pixels")
            suffix = SUFFIXES.get(image.format or "")
            short = min(width, height)
            if self.resize is None or short <= self.resize:
                if suffix is not None:
                    image.draft("L", (1, 1))  # JPEG: reads all of the data, but computes an eighth of the pixels
                    image.load()
                    return suffix, data
                return "jpg", self.encode(to_rgb(image))
            size = max(1, int(self.resize * width / short)), max(1, int(self.resize * height / short))
            # JPEG decodes to halves, quarters and eighths at less cost; twice the target keeps the filter's quality.
            image.draft("RGB", (2 * size[0], 2 * size[1]))
            return "jpg", self.encode(to_rgb(image).resize(size, Image.Resampling.BICUBIC))
        except UnusableError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UnusableError(f"more than {MAX_PIXELS:,} pixels") from error
        except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
            raise UnusableError("picture that cannot be decoded") from error

    def encode(self, image: Image.Image) -> bytes:
        stream = io.BytesIO()
        # Full colour resolution: halving it, as is usual, costs a photograph more than the rest of the encoding does.
        image.save(stream, "JPEG", quality=self.quality, subsampling="4:4:4")
        return stream.getvalue()
