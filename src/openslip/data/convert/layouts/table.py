"""A CSV, TSV or Parquet table with a column of image paths and one or several columns of captions.

The rows of one image become one sample with their captions in order. Relative paths start at the folder of the images
and may not lead out of it; absolute paths, in your own table, are used as they are.
"""

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from openslip.data.captions.decoding import is_damaged
from openslip.data.captions.policy import listed, not_texts
from openslip.data.convert import metadata as files
from openslip.data.convert.delimited import Delimited, checked_encoding, separator_of
from openslip.data.convert.record import NOT_A_TEXT, LeftOut, PictureFile, Record, below, not_decoded, one_per_image
from openslip.data.index.tar import printable
from openslip.distributed import notice_once
from openslip.errors import UserError, first_line

IMAGE_NAMES = ("image", "images", "filepath", "file_path", "path", "file", "filename", "file_name", "image_path")
CAPTION_NAMES = ("caption", "captions", "title", "text", "description")

Rows = Callable[[Sequence[str]], Iterable[Sequence[Any]]]  # given columns, yields the cells of every row


class Parquet(NamedTuple):
    """Open Parquet file, with the interface that is used of `Delimited`."""

    columns: list[str]
    rows: Rows
    hint: str = ""


def records(
    root: Path,
    *,
    metadata: Path | None = None,
    images: Path | None = None,
    image_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> Iterator[Record | LeftOut]:
    """Yield records in the order of the first row of each image.

    Args:
        root: folder of the dataset, or the table in it.
        metadata: the table; by default the only .csv, .tsv or .parquet in ROOT.
        images: folder that relative paths start from; by default ROOT.
        image_column: column of image paths; by default the only one with a usual name, such as `image` or `filepath`.
        caption_columns: column of captions; by default the only one with a usual name, such as `caption` or `title`.
        separator: separator of cells: one character, or the word `tab`; by default a comma, in a .tsv a tab.
        encoding: encoding of the table, such as latin-1; by default as its byte-order mark says, else UTF-8.
    """
    if root.is_file():
        root, metadata = root.parent, root
    path = files.find(root, metadata, "*.csv", "*.tsv", "*.parquet")
    folder = files.images_folder(root, images)
    with open_table(path, separator, encoding) as table:
        image = choose(path, table, image_column, IMAGE_NAMES, "--image-column")
        captions = [
            choose(path, table, name, CAPTION_NAMES, "--caption-column") for name in (caption_columns or [None])
        ]
        if isinstance(table, Delimited) and (line := table.first_quoted):
            notice_once(f'{path}, line {line}: quotation marks of a .tsv are text, so that "" stays two of them')
        yield from one_per_image(partial(of_rows, table.rows, [image, *captions], folder, not_decoded(encoding)))


def of_rows(rows: Rows, columns: list[str], folder: Path, undecoded: str) -> Iterator[Record | LeftOut]:
    for number, (name, *cells) in enumerate(rows(columns)):
        if not isinstance(name, str) or not name.strip():
            yield LeftOut(f"row {number}", f"row without a value in column {columns[0]}")
            continue
        name = name.strip()
        file = os.path.normpath(name) if os.path.isabs(name) else below(folder, name)
        if file is None:
            yield LeftOut(name, "path that leads out of the dataset's folder")
            continue
        values = [value for cell in cells for value in listed(cell)]
        if not_texts(values):
            yield LeftOut(f"a caption of row {number}", NOT_A_TEXT)
        texts = [value for value in values if isinstance(value, str)]
        captions = tuple(text for text in texts if not is_damaged(text))
        if len(captions) < len(texts):
            yield LeftOut(f"row {number}", undecoded)
        if captions or not texts:
            key = name.removeprefix(f"{folder}/") if os.path.isabs(name) else os.path.normpath(name)
            yield Record(os.path.splitext(key)[0], PictureFile(file), captions)


def choose(path: Path, table: Delimited | Parquet, given: str | None, usual: Sequence[str], option: str) -> str:
    """Choose a column of the table.

    Args:
        path: path of the table in errors.
        table: the open table.
        given: name given by the user; None selects the only column with a usual name.
        usual: usual names of such a column, in lower case.
        option: option that errors name.
    """
    columns = table.columns
    matches = [column for column in columns if given in (column, column.strip())]
    if given is None:
        matches = [column for column in columns if column.strip().lower() in usual]
    if len(matches) != 1:
        several = (
            f"columns {' and '.join(matches)} may be meant" if matches else f"no column {given or ' or '.join(usual)}"
        )
        raise UserError(f"{path}: {several}; give {option} one of {printable(', '.join(columns))}{table.hint}")
    return matches[0]


def open_table(path: Path, separator: str | None, encoding: str | None) -> AbstractContextManager[Delimited | Parquet]:
    if path.suffix != ".parquet":
        return nullcontext(Delimited(path, separator_of(path, separator), checked_encoding(encoding)))
    if separator or encoding:
        raise UserError(f"{path} is Parquet, which needs neither --separator nor --encoding: leave them out")
    return parquet_table(path)


@contextmanager
def parquet_table(path: Path) -> Iterator[Parquet]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise UserError(f'{path}: reading Parquet needs pyarrow; pip install "openslip[parquet]"') from error
    try:
        with parquet.ParquetFile(path) as table:

            def rows(columns: Sequence[str]) -> Iterator[list[Any]]:
                for batch in table.iter_batches(columns=columns):
                    yield from ([row[column] for column in columns] for row in batch.to_pylist())

            yield Parquet(table.schema_arrow.names, rows)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(f"{path} cannot be read as Parquet ({first_line(error)})") from error
