"""Lines on the terminal. Names, messages of servers and contents of files cannot steer it: see `printable`."""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAID_AFTER = 10.0  # seconds of waiting
QUIET = 60.0  # seconds between two lines of a process that say what it waits for

_quiet_until = 0.0

# Control characters (C0, DEL, C1), line separators, marks that reverse the direction of text, and lone surrogates.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""The text on one line, with `\x1b`, `\n` or `\u202e` in place of each character that a terminal would obey."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def say(*lines: object) -> None:
    """Print lines of results."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    sys.stdout.flush()


def notice(text: object, *, below: bool = False) -> None:
    """Print a line on stderr that tells what happens, beside the results; `below` the status line, on a new one."""
    sys.stderr.write(("\n" if below else "") + f"{printable(text)}\n")
    sys.stderr.flush()


@contextmanager
def waiting(describe: Callable[[], str | None]) -> Iterator[None]:
    """Print a line that says what is waited for when it takes longer than ten seconds.

    Args:
        describe: what is waited for, asked when the line is due; None: nothing worth a line.
    """
    timer = threading.Timer(SAID_AFTER, _say_waiting, [describe])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say_waiting(describe: Callable[[], str | None]) -> None:
    global _quiet_until
    if time.monotonic() >= _quiet_until and (what := describe()):
        _quiet_until = time.monotonic() + QUIET
        notice(f"waiting for {what}")
