"""Bytes of a text file to text: by its byte-order mark, else as UTF-8 or in a named encoding."""

import codecs
import re

# UTF-32 first: its little-endian mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
UNDECODED = re.compile("[\udc80-\udcff]")  # what Python's error handler surrogateescape makes of a byte


def text_of(data: bytes, encoding: str = "utf-8") -> str:
    """The text without its byte-order mark; `is_damaged` tells where bytes were in no such encoding."""
    mark = next(mark for mark in MARKS if data.startswith(mark)) if data.startswith(tuple(MARKS)) else b""
    try:
        text = data[len(mark) :].decode(MARKS.get(mark, encoding), "surrogateescape")
    except UnicodeDecodeError:  # the handler knows encodings of single bytes alone
        text = data.decode("utf-8", "surrogateescape")
    return text.replace("\0", "\udc80")  # no caption holds NUL; UTF-16 without a mark is full of it


def is_damaged(text: str) -> bool:
    """Whether a text from `text_of` holds what could not be decoded."""
    return not text.isascii() and UNDECODED.search(text) is not None
