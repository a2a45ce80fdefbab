"""Shows which phase a command is in: one line below all others on a terminal, a line now and then in a log file.

`rich`, which draws the line, is imported only if there is a terminal.
"""

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from openslip.terminal import is_quiet, mention, print_beside_another, printable

FIRST_LINE = 5.0  # seconds until a log file mentions a phase
LONGEST_PAUSE = 600.0  # seconds between two lines about a phase in a log file; the pauses before it double
REDRAWS_PER_SECOND = 4
MARGIN = 2  # columns that stay free, because a terminal adds ^C to the line
BAR, SHORTEST_BAR, LONGEST_BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}", 8, 30
SPINNER = r"-\|/"
BYTES = "MB"  # unit of downloads, which count bytes


class Row(ABC):
    """What the line at the bottom of the terminal shows.

    Attributes:
        name: name of the phase, which precedes the names of phases within it; empty if there is none.
    """

    name = ""

    @abstractmethod
    def line(self, width: int) -> str:
        """Return the text, which takes at most `width` columns."""


_lock = threading.RLock()
_enabled = False
_rows: list[Row] = []  # the innermost one, which is shown, comes last
_live: Any = None  # rich's display, while the terminal shows a row
_streams: tuple[TextIO, TextIO] | None = None  # stdout and stderr while the display replaces them


@contextmanager
def showing_progress(*, is_first: bool) -> Iterator[None]:
    """Show progress in this context; outside of it, as in library use, phases are silent.

    Args:
        is_first: whether this is the first process of the command; the other ranks of a run show nothing.
    """
    global _enabled
    before, _enabled = _enabled, is_first
    print_beside_another(not is_first)
    try:
        yield
    finally:
        close()
        _enabled = before
        print_beside_another(False)


@contextmanager
def progress(what: str, *, total: float | None = None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Show that a phase is running, and yield a function that adds to the amount of work done.

    Args:
        what: the phase, such as `indexing shards`.
        total: amount of work; None if it is not known.
        unit: `BYTES` if work is counted in bytes; empty for other units.
    """
    phase = Phase(what, total, unit, within="".join(row.name for row in _rows[-1:]))
    # Daemon threads work in the background, e.g. prefetch shards, and nobody waits for them.
    if not _enabled or is_quiet() or threading.current_thread().daemon:
        yield phase.advance
    elif on_terminal():
        with bottom(phase):
            yield phase.advance
    else:
        with logged(phase):
            yield phase.advance


def on_terminal() -> bool:
    """Whether the bottom of the terminal shows a line; false for log files, quiet commands and library use."""
    capable = os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return _enabled and not is_quiet() and capable and sys.stderr.isatty()


@contextmanager
def bottom(row: Row) -> Iterator[None]:
    """Show a row at the bottom of the terminal, below all that is printed, until a row within this context."""
    with _lock:
        _rows.append(row)
        redraw()
    try:
        yield
    finally:
        with _lock:
            if row in _rows:  # else `close` was first
                _rows.remove(row)
            redraw()


@contextmanager
def logged(phase: "Phase") -> Iterator[None]:
    """Print lines about a phase that takes long, at growing intervals, unless a phase within it does."""
    ended = threading.Event()
    _rows.append(phase)

    def print_lines() -> None:
        pause = FIRST_LINE
        while not ended.wait(pause):
            if _rows[-1:] == [phase]:
                phase.is_mentioned = True
                mention(phase.log_line())
            pause = min(2 * pause, LONGEST_PAUSE)

    thread = threading.Thread(target=print_lines, name="progress", daemon=True)
    thread.start()
    try:
        yield
        if phase.is_mentioned:
            mention(f"{phase.title}: done in {duration(phase.elapsed)}")
    finally:
        ended.set()
        if phase in _rows:  # else `close` was first
            _rows.remove(phase)


def redraw() -> None:
    """Draw the line again, because what it shows has changed."""
    global _live, _streams
    with _lock:
        if _live is not None and not _rows:
            _live.stop()
            _live = _streams = None
        elif _live is not None:
            _live.refresh()
        elif _rows and on_terminal():
            _streams = sys.stdout, sys.stderr
            _live = display()
            _live.start(refresh=True)


def width() -> int:
    """Return the number of columns that the line may take, while the terminal shows one."""
    return _live.console.width - MARGIN


def close() -> None:
    """Remove the line for good; also to be called before `os._exit`, which would leave it below the last words."""
    global _enabled
    with _lock:
        _enabled = False
        _rows.clear()
        redraw()


def display() -> Any:
    """Return rich's display of the line; while it is started, lines written to the terminal appear above it."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    class VisibleCursor(Console):
        """Never hides the cursor, because a process that is killed could not show it again."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    # `soft_wrap` leaves the wrapping of long lines to the terminal, from which paths can then be copied.
    console = VisibleCursor(
        stderr=True, force_terminal=True, soft_wrap=True, highlight=False, markup=False, emoji=False
    )

    def text() -> Text:
        columns = console.width - MARGIN
        line = Text("".join(row.line(columns) for row in _rows[-1:]), no_wrap=True, overflow="ellipsis", end="")
        line.truncate(columns, overflow="ellipsis")
        line.highlight_regex(f"{BAR}+", "bar.complete")
        return line

    return Live(
        console=console,
        get_renderable=text,
        transient=True,
        refresh_per_second=REDRAWS_PER_SECOND,
        redirect_stdout=sys.stdout.isatty(),
    )


class Phase(Row):
    """A phase of a command, with the amount of work that is done.

    Args:
        name: the phase, such as `indexing shards`.
        total: amount of work; None if it is not known.
        unit: `BYTES` if work is counted in bytes; empty for other units.
        within: name of the phase that this one is part of, or empty.
    """

    def __init__(self, name: str, total: float | None, unit: str, *, within: str) -> None:
        self.name = printable(name)
        self.title = f"{within}: {self.name}" if within else self.name
        self.total = total
        self.unit = unit
        self.done = 0.0
        self.started = time.monotonic()
        self.is_mentioned = False

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def advance(self, amount: float) -> None:
        """Add to the amount of work done."""
        self.done += amount

    def line(self, width: int) -> str:
        spinner = SPINNER[int(REDRAWS_PER_SECOND * self.elapsed) % len(SPINNER)]
        fields = [self.amount(), self.time()]
        room = width - len("  ".join(("- ", *filter(None, fields))))
        title = self.title if len(self.title) + (2 + SHORTEST_BAR if self.total else 0) <= room else self.name
        if len(title) > room >= SHORTEST_BAR:
            title = f"{title[: room - 1]}\N{HORIZONTAL ELLIPSIS}"
        length = min(room - len(title) - 2, LONGEST_BAR)
        bar = self.bar(length) if self.total and length >= SHORTEST_BAR else ""
        return "  ".join(filter(None, (f"{spinner} {title}", bar, *fields)))

    def bar(self, length: int) -> str:
        assert self.total is not None
        filled = min(int(length * self.done / self.total), length)
        return BAR * filled + "." * (length - filled)

    def log_line(self) -> str:
        percent = f"{100 * self.done / self.total:.0f} %" if self.total else ""
        took = f"{duration(self.elapsed)} so far" if self.total and self.done else ""
        return f"{self.title}: {', '.join(filter(None, (self.amount(), percent, took, self.time())))}"

    def amount(self) -> str:
        """Return the amount of work done, such as `3/40`; empty if nothing is known about it."""
        scale, digits = (1e6, ",.1f") if self.unit == BYTES else (1, ",.0f")
        done = f"{self.done / scale:{digits}}"
        unit = f" {self.unit}" if self.unit else ""
        if self.total is None:
            return f"{done}{unit}" if self.done else ""
        return f"{done}/{self.total / scale:{digits}}{unit}"

    def time(self) -> str:
        """Return the estimated remaining time, or the time so far if there is no estimate; at first nothing."""
        if self.elapsed < 1:
            return ""
        if not self.total or not self.done:
            return f"{duration(self.elapsed)} so far"
        return f"ETA {duration(self.elapsed * max(self.total / self.done - 1, 0))}"


def fitting(fields: Sequence[str], width: int) -> str:
    """Join the first fields, as many as fit into `width` columns; the least important ones come last."""
    line = fields[0]
    for field in fields[1:]:
        if len(line) + 2 + len(field) > width:
            break
        line += f"  {field}"
    return line


def duration(seconds: float) -> str:
    """Format a duration as `1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _forget() -> None:
    """Release the display in a forked child: its parent still draws, and inherited locks may never be released."""
    global _lock, _enabled, _live, _streams
    if _enabled:
        print_beside_another(True)
    _lock, _enabled = threading.RLock(), False
    _rows.clear()
    if _streams is not None:
        sys.stdout, sys.stderr = _streams
    _live = _streams = None


os.register_at_fork(after_in_child=_forget)
