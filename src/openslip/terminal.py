"""Prints lines in which control characters from names, servers and files cannot control the terminal."""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAID_AFTER = 10.0  # seconds of waiting before a line says what is waited for
QUIET = 60.0  # seconds of silence after such a line

_quiet_until = 0.0

# Control characters (C0, DEL, C1), line separators, marks that reverse the direction of text, and lone surrogates.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Return text as one line, with escapes such as `\x1b`, `\n` or `\u202e` for characters that control terminals."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def say(*lines: object) -> None:
    """Print lines of results on stdout."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    sys.stdout.flush()


def notice(text: object, *, below: bool = False) -> None:
    """Print a status message on stderr; `below` starts a new line first, below the status line."""
    sys.stderr.write(("\n" if below else "") + f"{printable(text)}\n")
    sys.stderr.flush()


@contextmanager
def waiting(describe: Callable[[], str | None]) -> Iterator[None]:
    """Print what is waited for if this context takes longer than ten seconds.

    Args:
        describe: returns what is waited for, called when the line is due; None prints nothing.
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
