"""Tar shards written with Python's tarfile, so that our reader meets files that it did not write."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def jpeg(seed: int, width: int = 40, height: int = 40) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_pairs(path: Path, num_samples: int, first: int = 0, image: bytes | None = None) -> Path:
    """Samples `s0000`... with a caption each, and a class number that is their own number."""
    members = []
    for number in range(first, first + num_samples):
        members += [
            (f"s{number:04}.jpg", jpeg(number) if image is None else image),
            (f"s{number:04}.txt", f"picture number {number}".encode()),
            (f"s{number:04}.cls", str(number).encode()),
        ]
    return write_tar(path, members)
