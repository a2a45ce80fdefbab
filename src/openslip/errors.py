"""Errors that a user can cause and fix; entry points print only their message and exit with their code."""

import sys
import traceback
from collections.abc import Callable

from openslip.terminal import notice


class UserError(Exception):
    """An error whose short message names the key or file, its value, what was expected and what to do next."""

    exit_code = 1


class MissingPackage(UserError):
    """A package that only an extra of OpenSLIP installs is needed."""


class MissingData(UserError):
    """Files of a dataset are absent; a suite of evaluations lists such a dataset and continues.

    Attributes:
        place: file or folder that is absent.
    """

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


class OtherRankError(UserError):
    """Another rank has failed in work that all ranks do together."""


class NonFiniteError(UserError):
    """Loss, gradients or weights are not finite."""

    exit_code = 3


class DataError(UserError):
    """The dataset is faulty, which was found during training."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none can be read."""

    exit_code = 5


def run_entry_point(main: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    """Run an entry point and return its exit code; an error prints one line, and with debug=true the traceback."""
    try:
        code = main([word for word in arguments if word not in ("debug=true", "debug=false")]) or 0
        sys.stdout.flush()  # inside this block, so that a failing write is reported
        return code
    except UserError as error:
        if "debug=true" in arguments:
            traceback.print_exc()
        notice(f"error: {error}")
        return error.exit_code
    except Exception as error:
        if "debug=true" in arguments:
            traceback.print_exc()
            return 1
        notice(f"error: {described(error)} (debug=true shows the traceback)")
        return 1


def described(error: BaseException) -> str:
    """Return the message of a UserError; of any other error, its type and the first line of its message."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
