"""Files of recordings: JSON and npz, or packed as those of the published code are, which ship with the package.

A packed file of arrays is one xz stream. Its first line is JSON: of each array the dtype, the shape, and which others
in its folder predict it as their sum ("+clip/grad/x": array grad/x of clip.npz). Then follows how far each number is
from its prediction, in steps from one float32 to the next, by planes of bytes. Nothing is rounded.
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
MAX_BYTES = 1 << 32  # of a file


def packed(path: Path) -> Path:
    """Where the packed form of a file lies."""
    return path.with_name(f"{path.name}.xz")


def is_recorded(path: Path) -> bool:
    """Whether a file is there, packed or not."""
    return path.is_file() or packed(path).is_file()


def read_json(path: Path) -> Any:
    """The content of a JSON file, packed or not."""
    return json.loads(path.read_bytes() if path.is_file() else arrays.read_xz(packed(path), max_bytes=MAX_BYTES))


def read_arrays(path: Path) -> Arrays:
    """All arrays of an npz file, packed or not."""
    if not path.is_file():
        return dict(_unpack(packed(path)))
    return Arrays(arrays.read_arrays(path, max_bytes=MAX_BYTES))


@cache
def _unpack(path: Path) -> Arrays:
    head, planes = arrays.read_xz(path, max_bytes=MAX_BYTES).split(b"\n", 1)
    folded = np.frombuffer(planes, np.uint8).reshape(4, -1).T.copy().view("<u4").ravel()
    steps = (folded >> 1) ^ (0 - (folded & 1))  # 0, 1, 2, 3, 4 are 0, -1, 1, -2, 2
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
    """The place of each float32 in their order."""
    bits = x.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits ^ 0x80000000)


def from_ordinal(places: np.ndarray) -> np.ndarray:
    """The float32 at each place."""
    return np.where(places >> 31, places ^ 0x80000000, ~places).view(np.float32)
