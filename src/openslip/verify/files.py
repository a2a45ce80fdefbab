"""Files of recordings: JSON and npz, or a packed form of them, in which those of the published code are distributed.

A packed file of arrays is one xz stream. Its first line is JSON: for each array the dtype, the shape, and which other
arrays in its folder predict it as their sum ("+clip/grad/x": array grad/x of clip.npz). The rest is the distance of
each number from its prediction, counted in steps from one float32 to the next and stored byte plane by byte plane.
Packing is lossless.
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from openslip import arrays
from openslip.verify.deviation import Arrays

RECORDINGS = Path(__file__).parent / "recordings"
MAX_BYTES = 1 << 32  # largest unpacked size of a file


def packed(path: Path) -> Path:
    """Return the path of the packed form of a file."""
    return path.with_name(f"{path.name}.xz")


def is_recorded(path: Path) -> bool:
    """Whether a file exists, packed or not."""
    return path.is_file() or packed(path).is_file()


def read_json(path: Path) -> Any:
    """Read a JSON file, packed or not."""
    return json.loads(path.read_bytes() if path.is_file() else arrays.read_xz(packed(path), max_bytes=MAX_BYTES))


def read_arrays(path: Path) -> Arrays:
    """Read all arrays of an npz file, packed or not."""
    if not path.is_file():
        return dict(_unpack(packed(path)))
    return Arrays(arrays.read_arrays(path, max_bytes=MAX_BYTES))


@cache
def _unpack(path: Path) -> Arrays:
    head, planes = arrays.read_xz(path, max_bytes=MAX_BYTES).split(b"\n", 1)
    folded = np.frombuffer(planes, np.uint8).reshape(4, -1).T.copy().view("<u4").ravel()
    steps = (folded >> 1) ^ (0 - (folded & 1))  # decode 0, 1, 2, 3, 4 to 0, -1, 1, -2, 2
    files = {path.name.split(".")[0]: Arrays()}
    (unpacked,) = files.values()
    for name, (dtype, shape, terms) in json.loads(head).items():
        distances, steps = np.split(steps, [math.prod(shape)])
        predicted = np.zeros(distances.shape)
        for term in terms:
            file, key = term[1:].split("/", 1)
            if file not in files:
                files[file] = read_arrays(path.with_name(f"{file}.npz"))
            predicted += (1 if term[0] == "+" else -1) * files[file][key].ravel()
        array = from_ordinal(ordinal(predicted.astype(np.float32)) + distances)
        unpacked[name] = array.astype(dtype).reshape(shape)
    return unpacked


def ordinal(x: np.ndarray) -> np.ndarray:
    """Return the index of each float32 value in the order of all float32 values."""
    bits = x.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits ^ 0x80000000)


def from_ordinal(places: np.ndarray) -> np.ndarray:
    """Return the float32 value at each index, the inverse of `ordinal`."""
    return np.where(places >> 31, places ^ 0x80000000, ~places).view(np.float32)
