"""Pickles of lists, tuples, dicts, texts, numbers and numpy arrays of them; nothing that a file names is ever called.

numpy's own names are answered with the classes below, which give plain Python values, so that neither numpy's
constructors nor the module's old or new name (numpy.core, numpy._core) matter.
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
    """An array as nested lists."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, is_fortran, data = state
        self[:] = _nested(data if isinstance(data, list) else dtype.values(data), shape, "F" if is_fortran else "C")


def _nested(values: list[Any], shape: tuple[int, ...], order: Literal["C", "F"]) -> list[Any]:
    return np.fromiter(values, object, len(values)).reshape(shape, order=order).tolist()


_ANSWERS: dict[str, Any] = {
    "_codecs.encode": lambda text, encoding: text.encode("latin-1"),  # how protocols before 3 write bytes
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
    """The pickle at the file's position, arrays as lists; one that names anything else is refused."""
    try:
        return _Unpickler(file).load()
    except _RefusedError as error:
        raise UserError(
            f"{path} names {error}, which could run code, so it is refused and nothing was run; "
            "expected lists, tuples, dicts, texts and numbers"
        ) from error
    except Exception as error:  # whatever a damaged or hostile file provokes
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path} cannot be read as a pickle ({reason}): write or download it again") from error
