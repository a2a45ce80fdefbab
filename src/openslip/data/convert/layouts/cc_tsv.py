"""CC3M and CC12M as Google publishes them: a .tsv of captions and addresses, and the images you have downloaded.

A row is caption, address (CC3M) or address, caption (CC12M), without a header. Its image is named by a third column
that you have added, a path below the folder of the images, or else by the row's number: NUMBER.jpg (or another suffix
of an image) in that folder itself, counted from 0, with or without leading zeros.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from openslip.data.convert import metadata as files
from openslip.data.convert.record import LeftOut, PictureFile, Record, below
from openslip.data.listing import is_image, visible_files


def records(root: Path, *, metadata: Path | None = None, images: Path | None = None) -> Iterator[Record | LeftOut]:
    """Records in the order of the rows; the address goes to KEY.json.

    Args:
        root: the dataset's folder.
        metadata: the file; by default the only .tsv in ROOT.
        images: folder of the images; by default ROOT/images, or ROOT.
    """
    path = files.find(root, metadata, "*.tsv")
    folder = files.images_folder(root, images, "images")
    patterns = name_patterns(folder)
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for number, row in enumerate(file):
            cells = [cell.strip() for cell in row.split("\t")]
            if len(cells) < 2 or not any(map(is_address, cells[:2])):
                yield LeftOut(str(number), "row that is no caption and address")
                continue
            address, caption = sorted(cells[:2], key=is_address, reverse=True)
            if len(cells) > 2 and cells[2]:
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
    """How the numbered files in a folder are written: digits with leading zeros (0: without), and suffix."""
    patterns = set()
    for path in visible_files(folder):
        if path.stem.isdecimal() and path.stem.isascii() and is_image(path):
            patterns.add((len(path.stem) if path.stem[0] == "0" and len(path.stem) > 1 else 0, path.suffix))
    return sorted(patterns)
