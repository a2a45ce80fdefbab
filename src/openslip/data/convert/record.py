"""What a layout yields: where a sample's picture lies and what is said of it, or why there is no sample."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file of its own."""

    path: str


@dataclass(frozen=True, slots=True)
class PictureSlice:
    """`size` bytes at `offset` of a file, such as a member of a tar."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class PictureInZip:
    """A member of a zip archive."""

    path: str
    member: str


Picture = PictureFile | PictureSlice | PictureInZip


@dataclass(frozen=True, slots=True)
class Record:
    """One sample to be written.

    Attributes:
        key: the collection's own name for it; need not be unique or fit for a file name.
        picture: where its bytes are.
        captions: in order, or by name, such as `title` and `description`.
        label: class number.
        fields: more to keep in KEY.json; values as JSON has them.
    """

    key: str
    picture: Picture
    captions: tuple[str, ...] | dict[str, str] = ()
    label: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A sample that the layout itself cannot use; `reason` is a category, the same for all of a kind."""

    key: str
    reason: str


def clean(text: str) -> str:
    """Stripped, and without what UTF-8 or a reader in C cannot hold: lone surrogates and NUL."""
    return encodable(text.replace("\0", " ")).strip()


def encodable(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def below(root: Path, relative: str) -> str | None:
    """The path of `relative` below `root`, None where it leads out: a list from elsewhere must not choose any file."""
    inside = os.path.normpath(relative)
    return None if os.path.isabs(inside) or inside.split(os.sep)[0] in ("..", ".") else os.path.join(root, inside)
