"""Files of arrays, whose stated sizes are compared with the file before any memory is taken."""

import lzma
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from openslip.regular_file import regular_file


def read_arrays(path: Path, *, max_bytes: int) -> dict[str, np.ndarray]:
    """All arrays of an npz file.

    Raises:
        ValueError: they are larger than `max_bytes` together, or than what the file holds of them.
        OSError, zipfile.BadZipFile, ...: whatever a damaged file makes numpy, zipfile and zlib raise.
    """
    with zipfile.ZipFile(regular_file(path)) as archive:
        if (total := sum(member.file_size for member in archive.infolist())) > max_bytes:
            raise ValueError(f"{total:,} bytes of arrays, more than {max_bytes:,} are refused")
        for member in archive.infolist():
            with archive.open(member) as file:
                check_size(file, member.file_size)
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def check_size(file: Any, size: int) -> np.dtype:
    """The dtype in the header of an npy file, at whose start the file stands.

    Raises:
        ValueError: no npy file, or one whose header states more values than its `size` in bytes holds.
    """
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version}")
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    stated = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and stated > size - file.tell():
        raise ValueError(f"an array of {stated:,} bytes in a file of {size:,}")
    return dtype


def read_xz(path: Path, *, max_bytes: int) -> bytes:
    """The content of an xz file; ValueError where it is larger than `max_bytes`."""
    decompressor = lzma.LZMADecompressor()
    content = decompressor.decompress(regular_file(path).read_bytes(), max_length=max_bytes)
    if not decompressor.eof:
        raise ValueError(f"{path.name} is cut off, or holds more than {max_bytes:,} bytes")
    return content
