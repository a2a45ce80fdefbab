"""Read CSV, TSV and other delimited text strictly: a row with more or fewer cells than the header is an error."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from openslip.data.captions.decoding import MARKS
from openslip.data.index.tar import printable
from openslip.errors import UserError

SEPARATORS = (",", "\t", ";", "|", " ")  # separators that a hint may suggest
LATE_QUOTE = re.compile(r'\s+".*"\s*$', re.DOTALL)  # quotation marks after a blank, which csv reads as text
QUOTED = re.compile(r'"([^"]|"")*""([^"]|"")*"')  # a cell with quotation marks in it, as CSV writes it


@dataclass(frozen=True)
class Delimited:
    """Text file with a header and rows of cells.

    Attributes:
        path: path of the file.
        separator: one character; if it is a tab, quotation marks are ordinary text, as in most TSV files.
        encoding: encoding of the file; None: as the byte-order mark says, else UTF-8.
    """

    path: Path
    separator: str
    encoding: str | None

    @property
    def columns(self) -> list[str]:
        return next(self.lines(), (0, []))[1]

    @property
    def hint(self) -> str:
        """Suggest what may be wrong with a header in which a column was not found."""
        header = self.separator.join(self.columns)
        if not header.replace("\t", "").isprintable():
            return f"; is it {self.encoding or 'UTF-8'}? --encoding names another, such as latin-1 or utf-16"
        guess = max((separator for separator in SEPARATORS if separator != self.separator), key=header.count)
        if self.separator in header or guess not in header:
            return ""
        return f"; is its separator {guess!r}? --separator {'tab' if guess == chr(9) else repr(guess)}"

    def rows(self, columns: Sequence[str]) -> Iterator[list[str]]:
        """Yield the cells of the given columns for every row; the first column must hold file names."""
        lines = self.lines()
        _, header = next(lines)
        places = [header.index(column) for column in columns]
        for line, cells in lines:
            if len(cells) != len(header):
                raise UserError(self.wrong_number(line, cells, len(header)))
            if self.separator != "\t" and any(map(LATE_QUOTE.match, cells)):
                raise UserError(f"{self.path}, line {line}: a blank stands before a cell's quotation mark; remove it")
            if any("\n" in cell for cell in cells) and self.holds_rows(cells, places[0]):
                raise UserError(self.open_quotation(line))
            yield [cells[place] for place in places]

    @property
    def first_quoted(self) -> int | None:
        """First line, among 10,000, of a tab-separated file with a cell that another program has quoted, or None."""
        if self.separator != "\t":
            return None
        quoted = (line for line, cells in islice(self.lines(), 10_000) if any(map(QUOTED.fullmatch, cells)))
        return next(quoted, None)

    def lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the cells of every row with the number of its first line; blank lines are skipped."""
        quoting = csv.QUOTE_NONE if self.separator == "\t" else csv.QUOTE_MINIMAL
        with open_text(self.path, self.encoding, newline="") as file:
            reader = csv.reader(file, delimiter=self.separator, quoting=quoting, strict=True)
            line = 1
            try:
                for cells in reader:
                    if len(cells) > 1 or any(cell.strip() for cell in cells):
                        yield line, cells
                    line = reader.line_num + 1
            except csv.Error as error:
                if quoting == csv.QUOTE_NONE:
                    raise UserError(f"{self.path}, line {line}: {error}") from error
                raise UserError(f"{self.open_quotation(line)} ({error})") from error

    def holds_rows(self, cells: list[str], place: int) -> bool:
        """Whether a line inside a cell looks like a row: it has as many cells, and a file name of the same kind.

        Args:
            cells: cells of a row.
            place: index of the cell with the file name.
        """
        kind = os.path.splitext(cells[place])[1].lower()
        inner = [line.split(self.separator) for cell in cells for line in cell.splitlines()[1:]]
        return any(len(row) == len(cells) and kind == os.path.splitext(row[place])[1].lower() != "" for row in inner)

    def open_quotation(self, line: int) -> str:
        return (
            f"{self.path}, line {line}: a quotation mark opens a cell here and is not closed at the cell's end; "
            'close it, or write the cell as "a ""quoted"" word"'
        )

    def wrong_number(self, line: int, cells: list[str], expected: int) -> str:
        if len(cells) < expected:
            fix = "add the missing ones, and join captions that are broken over several lines"
        elif self.separator == "\t":
            fix = "write tabs inside captions as spaces"
        else:
            fix = f'quote a cell that holds a {self.separator!r}, as in "red{self.separator} and round"'
        cell = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
        last = f'the last "{printable(cells[-1].strip()):.60}"'
        return f"{self.path}, line {line}: {cell}, {last}, where the header has {expected}; {fix}"


@contextmanager
def open_text(path: Path, encoding: str | None, newline: str) -> Iterator[TextIO]:
    """Open a text file after its byte-order mark; `is_damaged` finds texts with bytes that could not be decoded."""
    with path.open("rb") as start:
        first = start.read(4)
    written = encoding or next((name for mark, name in MARKS.items() if first.startswith(mark)), "utf-8")
    try:
        with path.open(encoding=written, errors="surrogateescape", newline=newline) as file:
            if file.read(1) != "\ufeff":
                file.seek(0)
            yield file
    except UnicodeError as error:
        raise UserError(f"{path} is not {written} ({error.__class__.__name__}: {error}); see --encoding") from error


def checked_encoding(name: str | None) -> str | None:
    """Return the encoding given as an option, after checking that Python knows it."""
    try:
        "".encode(name or "utf-8")
    except (LookupError, ValueError) as error:
        raise UserError(
            f"--encoding {name}: Python knows no such encoding of texts; such as latin-1, cp1252, utf-16, gb18030"
        ) from error
    return name


def separator_of(path: Path, given: str | None) -> str:
    """Return the separator given as an option, else the usual one for the file's suffix."""
    if given is None:
        return "\t" if path.suffix.lower() == ".tsv" else ","
    separator = {"tab": "\t", "\\t": "\t"}.get(given, given)
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(f"--separator {given!r}: expected one character, or tab")
    return separator
