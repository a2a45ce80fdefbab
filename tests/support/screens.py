"""What a terminal shows of the bytes that a command writes to it."""

import io
import sys

import pyte
import pytest

HEIGHT = 24


class Screen:
    """A terminal in memory; rows are as a person sees them, without trailing spaces."""

    def __init__(self, width: int) -> None:
        self.screen = pyte.Screen(width, HEIGHT)
        self.stream = pyte.ByteStream(self.screen)

    def feed(self, content: bytes) -> None:
        self.stream.feed(content)

    def rows(self) -> list[str]:
        """The rows down to the cursor or the last one that is not empty."""
        rows = [row.rstrip() for row in self.screen.display]
        while rows and not rows[-1] and len(rows) - 1 > self.screen.cursor.y:
            rows.pop()
        return rows

    def bottom(self) -> str:
        """The row with the cursor."""
        return self.screen.display[self.screen.cursor.y].rstrip()


class TerminalStream(io.TextIOBase):
    """A stream on a terminal in memory, which keeps what was seen after each write."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.screen = Screen(width)
        self.written = ""
        self.seen: list[list[str]] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self.written += text
        self.screen.feed(text.replace("\n", "\r\n").encode())  # as the driver of a terminal does
        self.seen.append(self.screen.rows())
        return len(text)


def attach(monkeypatch: pytest.MonkeyPatch, width: int) -> TerminalStream:
    """Let stdout and stderr be one terminal of this width."""
    stream = TerminalStream(width)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", str(HEIGHT))
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def attach_plain(monkeypatch: pytest.MonkeyPatch, width: int) -> TerminalStream:
    """Let stdout and stderr be one terminal of this width that cannot redraw a line; progress is not mentioned."""
    stream = attach(monkeypatch, width)
    monkeypatch.setattr("openslip.progress.FIRST_LINE", 1000.0)  # a slow machine would mention some phases
    monkeypatch.setenv("TERM", "dumb")
    return stream


def too_wide(text: str, width: int) -> list[str]:
    """The lines of a text that a terminal of this width breaks, except those of a single word, which stays whole."""
    return [line for line in text.splitlines() if len(line) > width and len(line.split()) > 1]
