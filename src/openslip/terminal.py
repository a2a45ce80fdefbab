"""Prints lines: wrapped to the terminal, and without control characters of names, servers and files that steer it."""

import re
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

SAID_AFTER = 10.0  # seconds of waiting before a line says what is waited for
QUIET = 60.0  # seconds of silence after such a line
ERASE = "\r\x1b[K"
NARROWEST = 60  # columns; text is not wrapped to fewer, even if the terminal has fewer

_quiet = False
_quiet_until = 0.0
_beside_another = False

# Control characters (C0, DEL, C1), line separators, marks that reverse the direction of text, and lone surrogates.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Return text as one line, with escapes such as `\x1b`, `\n` or `\u202e` for characters that control terminals."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def width() -> int:
    """Return the number of columns to which text is wrapped: those of the terminal, or 80 if there is none."""
    return max(NARROWEST, shutil.get_terminal_size().columns)


def wrapped(text: object, columns: int, *, indent: int | None = None) -> list[str]:
    """Wrap a line of text; words and commands between backticks stay whole, so that they can be copied.

    Args:
        text: the line.
        columns: width of the wrapped lines; a longer word or command takes a wider line of its own.
        indent: number of spaces before continuation lines; by default two more than before the first line.
    """
    line = printable(text)
    if indent is None:
        indent = len(line) - len(line.lstrip()) + 2
    # A null byte, which `printable` has escaped everywhere else, stands for a space that must not become a line break.
    whole = re.sub("`[^`]*`", lambda match: match[0].replace(" ", "\0"), line)
    lines = textwrap.wrap(
        whole, columns, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\0", " ") for part in lines] or [""]


def be_quiet(quiet: bool) -> None:
    """Set whether only results, warnings and errors are printed."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether only results, warnings and errors are printed."""
    return _quiet


def print_beside_another(beside: bool) -> None:
    """Set whether another process draws the line at the bottom of this process's terminal."""
    global _beside_another
    _beside_another = beside


def say(*lines: object) -> None:
    """Print lines of results on stdout."""
    _write(lines, to_stderr=False)


def say_wrapped(*lines: object, indent: int | None = None) -> None:
    """Print lines of results on stdout, wrapped if it is a terminal; a file or a pipe gets each line whole.

    Args:
        lines: the lines.
        indent: number of spaces before continuation lines, as in `wrapped`.
    """
    if sys.stdout.isatty():
        lines = tuple(part for line in lines for part in wrapped(line, width(), indent=indent))
    say(*lines)


def inform(*lines: object) -> None:
    """Print lines on stdout about what a command does, unless it is quiet."""
    if not _quiet:
        say(*lines)


def notice(text: object) -> None:
    """Print a warning or an error on stderr."""
    _write([text], to_stderr=True)


def mention(*lines: object) -> None:
    """Print lines on stderr about the state of a command, unless it is quiet."""
    if not _quiet:
        _write(lines, to_stderr=True)


def _write(lines: Sequence[object], *, to_stderr: bool) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    # The process that draws the line at the bottom writes above it, because `openslip.progress` replaces its streams.
    # Another process erases the line, which is then drawn again below what was printed.
    erase = ERASE if lines and _beside_another and stream.isatty() else ""
    stream.write(erase + "".join(f"{printable(line)}\n" for line in lines))
    stream.flush()


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
        mention(f"waiting for {what}")
