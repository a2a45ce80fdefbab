"""Records that a layout yields: a sample's image location, captions and label, or the reason why there is no sample.

The names of these classes and fields, and the reasons, are part of the hashes in manifests: with other names, a
conversion that an earlier version began could not be resumed.
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
    """An image in its own file."""

    path: str


@dataclass(frozen=True, slots=True)
class PictureSlice:
    """An image in a byte range of a file, such as a member of a tar file."""

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

    key: str  # the dataset's own name of the sample; need not be unique or a valid file name
    picture: Picture
    captions: tuple[str, ...] | dict[str, str] = ()  # in order, or by name, such as `title` and `description`
    label: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)  # further fields of KEY.json


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A sample that the layout itself cannot use; `reason` is a category, so the text is the same for all of a kind."""

    key: str
    reason: str


NOT_A_TEXT = "caption that is not text"


def not_decoded(encoding: str | None) -> str:
    """Reason for leaving out a caption that cannot be decoded."""
    return f"caption that is not {encoding or 'UTF-8'} (--encoding names another)"


def one_per_image(read: Callable[[], Iterator[Record | LeftOut]]) -> Iterator[Record | LeftOut]:
    """Join the records of each image to one, at the position of the first, with all captions in order.

    Args:
        read: returns the records from the beginning; it is called up to three times, so that only a hash is kept of
            most images.
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
    """Make the record of an image file below a folder; a path that leads out of the folder is left out.

    Args:
        folder: folder of the images.
        relative: path of the image, relative to `folder`.
        key: the dataset's own name of the sample.
        captions: captions of the image.
        fields: further fields of KEY.json.
    """
    path = below(folder, relative)
    if path is None:
        return LeftOut(relative, "path that leads out of the dataset's folder")
    return Record(key, PictureFile(path), captions, fields=fields or {})


def below(root: Path, relative: str) -> str | None:
    """Join two paths; None if the result leads out of `root`, because foreign metadata must not select any file."""
    inside = os.path.normpath(relative)
    return None if os.path.isabs(inside) or inside.split(os.sep)[0] in ("..", ".") else os.path.join(root, inside)


def clean(text: str) -> str:
    """Strip a text, and replace lone surrogates, which UTF-8 cannot encode, and NUL, which ends strings in C."""
    return encodable(text.replace("\0", " ")).strip()


def encodable(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def safe_key(name: str) -> str:
    """Convert a name to a key: without a dot, where the suffix would start, and not hidden or outside its folder."""
    plain = re.sub(r"[\x00-\x1f\x7f\\.]", "-", encodable(name).strip())
    # Readers skip members under folders such as __MACOSX__, so no key begins with an underscore.
    return "/".join(filter(None, plain.split("/"))).lstrip("_/") or "-"


def with_unique_keys(records: Iterable[Record | LeftOut]) -> Iterator[Record | LeftOut]:
    """Give all records safe and unique keys; a key that is taken gets the record's position in the dataset as a suffix.

    Only hashes of keys are kept, about 70 bytes per record. A collision merely lengthens the second key.
    """
    taken: set[int] = set()
    for place, record in enumerate(records):
        key = safe_key(record.key)
        while hash(key) in taken:
            key = f"{key}-{place}"
        taken.add(hash(key))
        yield replace(record, key=key)
