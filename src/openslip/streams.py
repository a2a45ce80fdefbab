"""Standard output and error: a failing write never stops work, unless the command's result is what it prints."""

import io
import os
import sys
from typing import TextIO

from openslip.errors import UserError


class _Cosmetic(io.FileIO):
    """A descriptor that becomes /dev/null when a write fails because the reader left, the disk is full, or similar."""

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
        """Ignore the error, so that work continues."""


class _Product(_Cosmetic):
    """A descriptor for a command's result: the command ends quietly if the reader has left, else with an error."""

    def report(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        raise UserError(f"standard output cannot be written ({error.strerror}): make room, or write it elsewhere")


def prepare(*, stdout_is_product: bool = False) -> None:
    """Replace standard output and error by streams with the behaviour above, and open descriptors that are closed.

    Call it first: a file that the process opens would otherwise get the number of a descriptor that the caller closed
    (`>&-`), and printed text would be written into that file.

    Args:
        stdout_is_product: whether the command's result is what it prints; other commands write files.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = _text((_Product if stdout_is_product else _Cosmetic)(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Cosmetic(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, former: TextIO | None) -> io.TextIOWrapper:
    """Return a line-buffered text stream with the encoding of the former stream."""
    encoding, errors = ("utf-8", "strict") if former is None else (former.encoding, former.errors)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True)
