"""CC3M and CC12M as Google publishes them: a .tsv of captions and addresses, and the images you have downloaded.

A row is caption, address (CC3M) or address, caption (CC12M), without a header. Its image is named by a third column
that you have added: a path relative to the folder of the images. Without that column, it is named by the row's number:
NUMBER.jpg (or another image suffix) in the folder itself, counted from 0, with or without leading zeros.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from openslip.data.captions.decoding import is_damaged
from openslip.data.convert import metadata as files
from openslip.data.convert.delimited import checked_encoding, open_text
from openslip.data.convert.record import LeftOut, PictureFile, Record, below, not_decoded, one_per_image
from openslip.data.listing import is_image, visible_files


def records(
    root: Path, *, metadata: Path | None = None, images: Path | None = None, encoding: str | None = None
) -> Iterator[Record | LeftOut]:
    """Yield records in the order of the rows; rows that name the same image in a third column are joined.

    The address goes to KEY.json.

    Args:
        root: folder of the dataset.
        metadata: the .tsv file; by default the only one in ROOT.
        images: folder of the images; by default ROOT/images, or ROOT.
        encoding: encoding of the file, such as latin-1; by default as its byte-order mark says, else UTF-8.
    """
    path = files.find(root, metadata, "*.tsv")
    folder = files.images_folder(root, images, "images")
    rows = partial(read_rows, path, checked_encoding(encoding))
    read = partial(of_rows, rows, folder, not_decoded(encoding))
    yield from one_per_image(read) if any(len(cells) > 2 for cells in rows()) else read()


def read_rows(path: Path, encoding: str | None) -> Iterator[list[str]]:
    """Yield the cells of every line; quotation marks are ordinary text, and only a line break ends a row."""
    with open_text(path, encoding, newline="\n") as file:
        for row in file:
            cells = [cell.strip() for cell in row.split("\t")]
            yield cells if any(cells[2:]) else cells[:2]


def of_rows(rows: Callable[[], Iterator[list[str]]], folder: Path, undecoded: str) -> Iterator[Record | LeftOut]:
    patterns = name_patterns(folder)
    for number, cells in enumerate(rows()):
        if not 2 <= len(cells) <= 3 or not any(map(is_address, cells[:2])):
            yield LeftOut(str(number), "row that is no caption and address")
            continue
        address, caption = sorted(cells[:2], key=is_address, reverse=True)
        if is_damaged(caption):
            yield LeftOut(f"row {number}", undecoded)
            continue
        if len(cells) > 2:
            image = below(folder, cells[2])
        else:
            names = [f"{folder}/{number:0{width}}{suffix}" for width, suffix in patterns]
            image = names[0] if len(names) == 1 else next(filter(os.path.exists, names), "")
        if image:
            yield Record(f"{number:09}", PictureFile(image), (caption,), fields={"url": address})
        else:
            reason = "path that leads out of the dataset's folder" if image is None else "missing image"
            yield LeftOut(str(number), reason)


def is_address(cell: str) -> bool:
    return cell.startswith(("http://", "https://"))


def name_patterns(folder: Path) -> list[tuple[int, str]]:
    """List the forms of the numbered file names in a folder: number of digits (0: no leading zeros), and suffix."""
    patterns = set()
    for path in visible_files(folder):
        if path.stem.isdecimal() and path.stem.isascii() and is_image(path):
            patterns.add((len(path.stem) if path.stem[0] == "0" and len(path.stem) > 1 else 0, path.suffix))
    return sorted(patterns)
