"""img2dataset's output: folders 00000/ with 000000000.jpg, .txt and .json, or tars of them, which are packed again."""

import json
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from openslip.data.convert.record import LeftOut, Picture, PictureFile, PictureSlice, Record
from openslip.data.tar import Problems, walk
from openslip.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp")
SUFFIXES = (*PICTURES, "txt", "json", "cls")

Read = Callable[[str], bytes]


def records(root: Path) -> Iterator[Record | LeftOut]:
    """In the order of names. A sample's txt and json are kept, and its cls, if other tools have added one."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected img2dataset's output_folder")
    parts = sorted(path for path in root.iterdir() if path.is_dir() or path.suffix == ".tar")
    if not parts:
        raise UserError(f"{root} holds no folders and no .tar files, as img2dataset's output does")
    for part in parts:
        yield from of_folder(part) if part.is_dir() else of_tar(part)


def of_folder(folder: Path) -> Iterator[Record | LeftOut]:
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix[1:].lower() in SUFFIXES:
            groups.setdefault(path.stem, {})[path.suffix[1:].lower()] = path
    for key, members in groups.items():
        pictures: dict[str, Picture] = {s: PictureFile(str(path)) for s, path in members.items() if s in PICTURES}
        yield sample(key, pictures, members.keys(), lambda suffix, members=members: members[suffix].read_bytes())


def of_tar(path: Path) -> Iterator[Record | LeftOut]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            groups: dict[str, dict[str, tuple[int, int]]] = {}
            for raw, offset, size in walk(str(path), data, Problems()):
                folder, slash, name = raw.decode("utf-8", "replace").removeprefix("./").rpartition("/")
                stem, _, suffix = name.partition(".")
                if stem and suffix.lower() in SUFFIXES:
                    groups.setdefault(folder + slash + stem, {}).setdefault(suffix.lower(), (offset, size))
            for key, members in groups.items():
                pictures: dict[str, Picture] = {
                    s: PictureSlice(str(path), *place) for s, place in members.items() if s in PICTURES
                }

                def read(suffix: str, members: dict[str, tuple[int, int]] = members) -> bytes:
                    offset, size = members[suffix]
                    return data[offset : offset + size]

                yield sample(key, pictures, members.keys(), read)
    except (OSError, ValueError) as error:  # mmap refuses an empty file by ValueError
        raise UserError(f"{path}: {error}; download or write it again") from error


def sample(key: str, pictures: dict[str, Picture], suffixes: Any, read: Read) -> Record | LeftOut:
    if not pictures:
        return LeftOut(key, "missing picture")
    picture = next(pictures[suffix] for suffix in PICTURES if suffix in pictures)
    try:
        fields = json.loads(read("json")) if "json" in suffixes else {}
        label = int(read("cls")) if "cls" in suffixes else None
    except (ValueError, RecursionError):
        return LeftOut(key, "json or cls that cannot be read")
    if not isinstance(fields, dict):
        return LeftOut(key, "json or cls that cannot be read")
    texts = [read("txt").decode("utf-8", "replace") if "txt" in suffixes else fields.get("caption")]
    if isinstance(more := fields.get("captions"), list):
        texts += more
    return Record(key, picture, tuple(text for text in texts if isinstance(text, str)), label, fields)
