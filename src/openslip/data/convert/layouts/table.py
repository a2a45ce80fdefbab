"""A CSV, TSV or Parquet table with a column of picture paths and one or several of captions.

Paths are relative to the folder of the pictures and stay in it; absolute ones, in a table of your own, are taken as
they are.
"""

import csv
import importlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openslip.data.convert import metadata as files
from openslip.data.convert.record import LeftOut, PictureFile, Record, below
from openslip.errors import UserError

IMAGE_NAMES = ("image", "images", "filepath", "file_path", "path", "file", "filename", "file_name", "image_path")
CAPTION_NAMES = ("caption", "captions", "title", "text", "description")


def records(
    root: Path,
    *,
    metadata: Path | None = None,
    images: Path | None = None,
    image_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
) -> Iterator[Record | LeftOut]:
    """In the order of the rows.

    Args:
        root: the collection's folder.
        metadata: the table; by default the only .csv, .tsv or .parquet in ROOT.
        images: the folder that relative paths start from; by default ROOT.
        image_column: by default the only one with a usual name, such as `image` or `filepath`.
        caption_columns: by default the only one with a usual name, such as `caption` or `title`.
    """
    path = files.find(root, metadata, "*.csv", "*.tsv", "*.parquet")
    folder = files.pictures_folder(root, images)
    columns, rows = read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
    image = choose(path, columns, image_column, IMAGE_NAMES, "--image-column")
    captions = [choose(path, columns, name, CAPTION_NAMES, "--caption-column") for name in (caption_columns or [None])]
    for number, row in enumerate(rows):
        name = row.get(image)
        if not isinstance(name, str) or not name.strip():
            yield LeftOut(f"row {number}", f"row without a value in column {image}")
            continue
        name = name.strip()
        found = name if os.path.isabs(name) else below(folder, name)
        if found is None:
            yield LeftOut(name, "path that leads out of the collection's folder")
            continue
        texts = [text for column in captions for text in listed(row.get(column))]
        key = name.removeprefix(f"{folder}/") if os.path.isabs(name) else os.path.normpath(name)
        yield Record(os.path.splitext(key)[0], PictureFile(found), tuple(texts))


def choose(path: Path, columns: list[str], given: str | None, usual: Sequence[str], option: str) -> str:
    found = [column for column in columns if column == given or (given is None and column.strip().lower() in usual)]
    if len(found) != 1:
        several = f"columns {' and '.join(found)} may be meant" if found else f"no column {given or ' or '.join(usual)}"
        raise UserError(f"{path}: {several}; give {option} one of {', '.join(columns)}")
    return found[0]


def listed(value: Any) -> list[str]:
    """A cell's captions: Parquet has cells that hold several."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def read_csv(path: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The header, and rows by column; bytes that are not UTF-8 are kept in paths and marked in captions."""
    try:
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")

    def rows() -> Iterator[dict[str, Any]]:
        with file:
            try:
                yield from reader
            except csv.Error as error:
                raise UserError(f"{path}, line {reader.line_num}: {error}; is a quotation mark left open?") from error

    try:
        return list(reader.fieldnames or ()), rows()
    except csv.Error as error:
        file.close()
        raise UserError(f"{path}, line 1: {error}; expected the columns' names") from error


def read_parquet(path: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise UserError(f'{path}: reading Parquet needs pyarrow; pip install "openslip[parquet]"') from error
    try:
        table = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from error
    return list(table.schema_arrow.names), (row for batch in table.iter_batches() for row in batch.to_pylist())
