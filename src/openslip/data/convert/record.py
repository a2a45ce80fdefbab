"""What a layout yields: a record of where a sample's image lies and what is said of it, or why there is no sample.

The names of these classes and fields, and the reasons, are hashed into manifests: with other names, a conversion that
an earlier version began could not be resumed.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class PictureFile:
    """An image in a file of its own."""

    path: str


@dataclass(frozen=True, slots=True)
class PictureSlice:
    """An image in `size` bytes at `offset` of a file, such as a member of a tar."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class PictureInZip:
    """An image that is a member of a zip archive."""

    path: str
    member: str


Picture = PictureFile | PictureSlice | PictureInZip


@dataclass(frozen=True, slots=True)
class Record:
    """One sample to be written."""

    key: str  # the dataset's own name for it; need not be unique or fit for a file name
    picture: Picture
    captions: tuple[str, ...] | dict[str, str] = ()  # in order, or by name, such as `title` and `description`
    label: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)  # more to keep in KEY.json


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A sample that the layout itself cannot use; `reason` is a category, the same for all of a kind."""

    key: str
    reason: str


NOT_A_TEXT = "caption that is not text"


def not_decoded(encoding: str | None) -> str:
    """The reason to leave out a caption that is not in a file's encoding."""
    return f"caption that is not {encoding or 'UTF-8'} (--encoding names another)"


def one_per_image(read: Callable[[], Iterator[Record | LeftOut]]) -> Iterator[Record | LeftOut]:
    """The records that `read` gives, those of one image joined to one in the place of the first, captions in order.

    It reads several times, so that of most images only a hash is kept.
    """
    images, repeated = set[int](), set[int]()
    for record in read():
        if isinstance(record, Record):
            image = hash(record.picture)
            (repeated if image in images else images).add(image)
    captions = defaultdict[Picture, list[str]](list)
    for record in read() if repeated else ():
        if isinstance(record, Record) and hash(record.picture) in repeated:
            captions[record.picture] += record.captions
    for record in read():
        if isinstance(record, LeftOut) or hash(record.picture) not in repeated:
            yield record
        elif record.picture in captions:
            yield replace(record, captions=tuple(captions.pop(record.picture)))


def record_in(
    folder: Path, relative: str, key: str, captions: tuple[str, ...], fields: dict[str, Any] | None = None
) -> Record | LeftOut:
    """The record of an image file below a folder; it is left out where its path leads out of the folder."""
    path = below(folder, relative)
    if path is None:
        return LeftOut(relative, "path that leads out of the dataset's folder")
    return Record(key, PictureFile(path), captions, fields=fields or {})


def below(root: Path, relative: str) -> str | None:
    """The path of `relative` below `root`, None where it leads out: a list from elsewhere must not choose any file."""
    inside = os.path.normpath(relative)
    return None if os.path.isabs(inside) or inside.split(os.sep)[0] in ("..", ".") else os.path.join(root, inside)


def clean(text: str) -> str:
    """The text stripped, and without what UTF-8 or a reader in C cannot hold: lone surrogates and NUL."""
    return encodable(text.replace("\0", " ")).strip()


def encodable(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def safe_key(name: str) -> str:
    """A name as a key: without a dot, where the suffix would start, and not hidden or outside the shard's folder."""
    plain = re.sub(r"[\x00-\x1f\x7f\\.]", "-", encodable(name).strip())
    # Readers skip members under folders such as __MACOSX__, so no key begins with an underscore.
    return "/".join(filter(None, plain.split("/"))).lstrip("_/") or "-"


def with_unique_keys(records: Iterable[Record | LeftOut]) -> Iterator[Record | LeftOut]:
    """Records with safe keys; a key that is taken gets the record's place in the dataset as a suffix.

    Keeps only hashes, about 70 bytes a record. Two keys of one hash only lengthen the second.
    """
    taken: set[int] = set()
    for place, record in enumerate(records):
        key = safe_key(record.key)
        while hash(key) in taken:
            key = f"{key}-{place}"
        taken.add(hash(key))
        yield replace(record, key=key)
