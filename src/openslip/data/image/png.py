"""Lossless encoding of decoded images, for sources of encoded images whose pixels come from an array or a crop."""

import io

from PIL import Image


def png(image: Image.Image) -> bytes:
    """Encode an image as PNG with the pixels it has; CMYK, which PNG lacks, is converted to RGB as decoders do."""
    stream = io.BytesIO()
    (image.convert("RGB") if image.mode == "CMYK" else image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
