"""Standard output and error: what cannot be printed stops no work, and what a command exists to print is not lost."""

import io
import os
import sys
from typing import TextIO

from openslip.errors import UserError


class _Cosmetic(io.FileIO):
    """A descriptor that becomes /dev/null with the first write that fails: reader gone, disk full, terminal closed."""

    def write(self, data, /) -> int | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # the descriptor itself, which libraries and child processes write to as well
            os.close(null)
            self.report(error)
            return memoryview(data).nbytes

    def report(self, error: OSError) -> None:
        """Say nothing: the work goes on."""


class _Product(_Cosmetic):
    """A descriptor for which a command exists: it ends quietly once its reader has left, else with an error."""

    def report(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        raise UserError(f"standard output cannot be written ({error.strerror}): make room, or write it elsewhere")


def prepare(*, stdout_is_product: bool = False) -> None:
    """Decide what a failing write to standard output does, let none to standard error fail, open closed descriptors.

    Call it first of all: a file that the process opens would otherwise get the number of a descriptor that the caller
    closed (`>&-`), and whatever prints would write into it.

    Args:
        stdout_is_product: whether the command exists for what it prints; the product of others is files.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = _text((_Product if stdout_is_product else _Cosmetic)(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Cosmetic(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, former: TextIO | None) -> io.TextIOWrapper:
    """A text stream with the former's encoding, sent line by line."""
    encoding, errors = ("utf-8", "strict") if former is None else (former.encoding, former.errors)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True)
