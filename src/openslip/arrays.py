"""Files of arrays; the sizes in their headers are compared with the file before memory is allocated."""

import lzma
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from openslip.durable import durable, optional
from openslip.regular_file import regular_file


def read_arrays(path: Path, *, max_bytes: int) -> dict[str, np.ndarray]:
    """Read all arrays of an npz file.

    Args:
        path: the npz file.
        max_bytes: largest accepted total size of the unpacked arrays in bytes.

    Raises:
        ValueError: the arrays are larger than `max_bytes` together, or an array's header states more than there is.
        OSError, zipfile.BadZipFile, ...: any error of numpy, zipfile or zlib from a damaged file.
    """
    with zipfile.ZipFile(regular_file(path)) as archive:
        if (total := sum(member.file_size for member in archive.infolist())) > max_bytes:
            raise ValueError(f"{total:,} bytes of arrays, more than {max_bytes:,} are refused")
        for member in archive.infolist():
            with archive.open(member) as file:
                check_size(file, member.file_size)
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed `.npz` durably, for the report; if that fails, print a warning."""
    with optional(path):
        path.parent.mkdir(exist_ok=True)
        with durable(path) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)


def check_size(file: Any, size: int) -> np.dtype:
    """Read the header of an npy file and return its dtype.

    Args:
        file: open npy file, positioned at its start.
        size: size of the file in bytes.

    Raises:
        ValueError: it is not an npy file, or its header states more values than `size` bytes can hold.
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
    """Unpack an xz file; raise ValueError if its content is larger than `max_bytes` or cut off."""
    decompressor = lzma.LZMADecompressor()
    content = decompressor.decompress(regular_file(path).read_bytes(), max_length=max_bytes)
    if not decompressor.eof:
        raise ValueError(f"{path.name} is cut off, or holds more than {max_bytes:,} bytes")
    return content
