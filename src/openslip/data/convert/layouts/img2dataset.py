"""img2dataset's output: folders 00000/ with 000000000.jpg, .txt and .json, or tars of them, which are packed again."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from openslip.data.convert.record import LeftOut, Picture, PictureFile, PictureSlice, Record
from openslip.data.image.formats import IMAGE_SUFFIXES
from openslip.data.index.tar import Problems, map_shard, walk
from openslip.data.listing import is_hidden, visible_files
from openslip.errors import UserError

TEXTS = ("txt", "json", "cls")


def records(root: Path) -> Iterator[Record | LeftOut]:
    """Records in the order of names, with a sample's txt and json, and its cls, if other tools have added one."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected img2dataset's output_folder")
    parts = [path for path in sorted(root.iterdir()) if path.is_dir() or path.suffix == ".tar"]
    parts = [path for path in parts if not is_hidden(path.name)]
    if not parts:
        raise UserError(f"{root} holds no folders and no .tar files, as img2dataset's output does")
    for part in parts:
        yield from of_folder(part) if part.is_dir() else of_tar(part)


def of_folder(folder: Path) -> Iterator[Record | LeftOut]:
    groups = defaultdict[str, dict[str, Path]](dict)
    for path in visible_files(folder):
        suffix = path.suffix[1:].lower()
        if suffix in (*IMAGE_SUFFIXES, *TEXTS):
            groups[path.stem][suffix] = path
    for key, members in groups.items():
        pictures = [PictureFile(str(members[suffix])) for suffix in IMAGE_SUFFIXES if suffix in members]
        yield sample(key, pictures, {suffix: members[suffix].read_bytes() for suffix in TEXTS if suffix in members})


def of_tar(path: Path) -> Iterator[Record | LeftOut]:
    with map_shard(path, str(path)) as data:
        groups = defaultdict[str, dict[str, slice]](dict)
        for raw, start, size in walk(str(path), data, Problems()):
            folder, slash, name = raw.decode("utf-8", "replace").removeprefix("./").rpartition("/")
            stem, _, suffix = name.partition(".")
            if any(map(is_hidden, folder.split("/"))):
                continue
            if stem and suffix.lower() in (*IMAGE_SUFFIXES, *TEXTS):
                groups[folder + slash + stem].setdefault(suffix.lower(), slice(start, start + size))
        for key, members in groups.items():
            places = [members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members]
            pictures = [PictureSlice(str(path), place.start, place.stop - place.start) for place in places]
            yield sample(key, pictures, {suffix: data[members[suffix]] for suffix in TEXTS if suffix in members})


def sample(key: str, pictures: Sequence[Picture], texts: dict[str, bytes]) -> Record | LeftOut:
    if not pictures:
        return LeftOut(key, "missing image")
    try:
        fields = json.loads(texts.get("json", b"{}"))
        label = int(texts["cls"]) if "cls" in texts else None
    except (ValueError, RecursionError):
        fields, label = None, None
    if not isinstance(fields, dict):
        return LeftOut(key, "json or cls that cannot be read")
    captions = [texts["txt"].decode("utf-8", "replace") if "txt" in texts else fields.get("caption")]
    if isinstance(more := fields.get("captions"), list):
        captions += more
    return Record(key, pictures[0], tuple(text for text in captions if isinstance(text, str)), label, fields)
