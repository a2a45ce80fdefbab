"""Errors that a user can cause and fix: entry points print the message alone and leave with its exit code."""

import sys
import traceback
from collections.abc import Callable

from openslip.terminal import notice


class UserError(Exception):
    """One short message that names the key or file, its value, what was expected and what to do next."""

    exit_code = 1


class NonFiniteError(UserError):
    """Loss, gradients or weights are not finite."""

    exit_code = 3


class DataError(UserError):
    """The dataset itself is at fault, found while the run was training."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none can be read."""

    exit_code = 5


def run_entry_point(main: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    """Run an entry point: a user's mistake is one line and its exit code; debug=true shows the traceback as it is."""
    try:
        code = main([word for word in arguments if word not in ("debug=true", "debug=false")]) or 0
        sys.stdout.flush()  # here, where a failure is reported
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
        notice(f"error: {type(error).__name__}: {first_line(error)} (debug=true shows the traceback)")
        return 1


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
