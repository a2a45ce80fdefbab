"""A CSV, TSV or Parquet table with a column of image paths and one or several of captions.

Paths are relative to the folder of the images and stay in it; absolute ones, in a table of your own, are taken as they
are.
"""

import csv
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openslip.data.convert import metadata as files
from openslip.data.convert.record import LeftOut, PictureFile, Record, below
from openslip.errors import UserError, first_line

IMAGE_NAMES = ("image", "images", "filepath", "file_path", "path", "file", "filename", "file_name", "image_path")
CAPTION_NAMES = ("caption", "captions", "title", "text", "description")

Table = tuple[list[str], Callable[[list[str]], Iterable[dict[str, Any]]]]  # names of columns; columns to rows


def records(
    root: Path,
    *,
    metadata: Path | None = None,
    images: Path | None = None,
    image_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
) -> Iterator[Record | LeftOut]:
    """Records in the order of the rows.

    Args:
        root: the dataset's folder, or the table in it.
        metadata: the table; by default the only .csv, .tsv or .parquet in ROOT.
        images: the folder that relative paths start from; by default ROOT.
        image_column: by default the only one with a usual name, such as `image` or `filepath`.
        caption_columns: by default the only one with a usual name, such as `caption` or `title`.
    """
    if root.is_file():
        root, metadata = root.parent, root
    path = files.find(root, metadata, "*.csv", "*.tsv", "*.parquet")
    folder = files.images_folder(root, images)
    with (parquet_table if path.suffix == ".parquet" else csv_table)(path) as (columns, rows):
        image = choose(path, columns, image_column, IMAGE_NAMES, "--image-column")
        captions = [
            choose(path, columns, name, CAPTION_NAMES, "--caption-column") for name in (caption_columns or [None])
        ]
        for number, row in enumerate(rows([image, *captions])):
            name = row.get(image)
            if not isinstance(name, str) or not name.strip():
                yield LeftOut(f"row {number}", f"row without a value in column {image}")
                continue
            name = name.strip()
            file = name if os.path.isabs(name) else below(folder, name)
            if file is None:
                yield LeftOut(name, "path that leads out of the dataset's folder")
                continue
            texts = tuple(text for column in captions for text in listed(row.get(column)))
            key = name.removeprefix(f"{folder}/") if os.path.isabs(name) else os.path.normpath(name)
            yield Record(os.path.splitext(key)[0], PictureFile(file), texts)


def choose(path: Path, columns: list[str], given: str | None, usual: Sequence[str], option: str) -> str:
    """The column of a given name, or the only one of a usual name."""
    matches = [column for column in columns if column == given or (given is None and column.strip().lower() in usual)]
    if len(matches) != 1:
        several = (
            f"columns {' and '.join(matches)} may be meant" if matches else f"no column {given or ' or '.join(usual)}"
        )
        raise UserError(f"{path}: {several}; give {option} one of {', '.join(columns)}")
    return matches[0]


def listed(value: Any) -> list[str]:
    """A cell's captions: Parquet has cells that hold several."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


@contextmanager
def csv_table(path: Path) -> Iterator[Table]:
    """An open CSV or TSV file; bytes that are not UTF-8 are kept in paths and become marks in captions."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            yield list(reader.fieldnames or ()), lambda columns: reader
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}; is a quotation mark left open?") from error


@contextmanager
def parquet_table(path: Path) -> Iterator[Table]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise UserError(f'{path}: reading Parquet needs pyarrow; pip install "openslip[parquet]"') from error
    try:
        with parquet.ParquetFile(path) as table:
            yield (
                table.schema_arrow.names,
                lambda columns: (row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist()),
            )
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(f"{path} cannot be read as Parquet ({first_line(error)})") from error
