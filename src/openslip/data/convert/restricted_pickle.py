"""Read pickles of lists, tuples, dicts, texts, numbers and numpy arrays, without calling anything that a file names.

Names of numpy are resolved to the classes below, which make plain Python values. So neither numpy's constructors nor
the old and new names of its module (numpy.core, numpy._core) matter.
"""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from openslip.errors import UserError, first_line


class _Dtype:
    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[?OSUbiuf]\d{0,9}", code):
            raise pickle.UnpicklingError(f"numpy type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = str(state[1])

    def values(self, data: bytes) -> list[Any]:
        if self.code.startswith("O"):
            raise pickle.UnpicklingError("objects in raw bytes")
        return np.frombuffer(data, np.dtype(self.code).newbyteorder(self.order)).tolist()  # type: ignore[arg-type]


class _Array(list):
    """A numpy array as nested lists."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, is_fortran, data = state
        if isinstance(data, list):  # objects, which numpy lists in C order whatever the array's own order
            self[:] = _nested(data, shape, "C")
        else:
            self[:] = _nested(dtype.values(data), shape, "F" if is_fortran else "C")


def _nested(values: list[Any], shape: tuple[int, ...], order: Literal["C", "F"]) -> list[Any]:
    return np.fromiter(values, object, len(values)).reshape(shape, order=order).tolist()


_ANSWERS: dict[str, Any] = {
    "_codecs.encode": lambda text, encoding: text.encode("latin-1"),  # writes bytes in protocols before 3
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    **{
        f"numpy.{core}.{name}": answer
        for core in ("core", "_core")
        for name, answer in (
            ("multiarray._reconstruct", lambda *array: _Array()),
            ("multiarray.scalar", lambda dtype, data: dtype.values(data)[0]),
            ("numeric._frombuffer", lambda data, dtype, *shape_order: _nested(dtype.values(bytes(data)), *shape_order)),
        )
    },
}


class _RefusedError(Exception):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if f"{module}.{name}" not in _ANSWERS:
            raise _RefusedError(f"{module}.{name}")
        return _ANSWERS[f"{module}.{name}"]


def load(file: IO[bytes], path: Path) -> Any:
    """Load a pickle with arrays as nested lists, and refuse one that names anything that is not known to be safe.

    Args:
        file: open file, read from its current position.
        path: path of the file in errors.
    """
    try:
        return _Unpickler(file).load()
    except _RefusedError as error:
        raise UserError(
            f"{path} names {error}, which could run code, so it is refused and nothing was run; "
            "expected lists, tuples, dicts, texts and numbers"
        ) from error
    except Exception as error:  # a damaged or hostile file can cause any error
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path} cannot be read as a pickle ({reason}): write or download it again") from error
