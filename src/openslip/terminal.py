"""Lines on the terminal. Names, messages of servers and contents of files cannot steer it: see `printable`."""

import re
import sys

# Control characters (C0, DEL, C1), line separators, marks that reverse the direction of text, and lone surrogates.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""The text on one line, with `\x1b`, `\n` or `\u202e` in place of each character that a terminal would obey."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def say(text: object) -> None:
    """Print a line of results."""
    sys.stdout.write(f"{printable(text)}\n")


def notice(text: object) -> None:
    """Print a line on stderr that tells what happens, beside the results."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()
