"""Decode the bytes of a text file: by its byte-order mark, else as UTF-8 or a named encoding."""

import codecs
import re
from pathlib import Path

from openslip.errors import UserError
from openslip.regular_file import regular_file

# UTF-32 comes before UTF-16, because its little-endian mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
UNDECODED = re.compile("[\udc80-\udcff]")  # Python's error handler surrogateescape maps bytes to these


def text_of(data: bytes, encoding: str = "utf-8") -> str:
    """Decode bytes to text without byte-order mark; `is_damaged` finds texts with bytes that could not be decoded."""
    mark = next(mark for mark in MARKS if data.startswith(mark)) if data.startswith(tuple(MARKS)) else b""
    try:
        text = data[len(mark) :].decode(MARKS.get(mark, encoding), "surrogateescape")
    except UnicodeDecodeError:  # surrogateescape fails with encodings of several bytes per unit
        text = data.decode("utf-8", "surrogateescape")
    return text.replace("\0", "\udc80")  # counts as damage: NUL means UTF-16 without a mark, not a caption


def is_damaged(text: str) -> bool:
    """Whether a text from `text_of` contains bytes that could not be decoded."""
    return not text.isascii() and UNDECODED.search(text) is not None


def read_text(path: Path) -> str:
    r"""Read a text file by its byte-order mark, else as UTF-8; all ends of lines become `\n`.

    Raises:
        UserError: the file has bytes that cannot be decoded, or is not a regular file.
    """
    text = text_of(regular_file(path).read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
    if damaged := UNDECODED.search(text):
        line = text.count("\n", 0, damaged.start()) + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8")
    return text
