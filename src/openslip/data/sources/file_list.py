"""Labelled images that lists of paths and labels name, as published SLIP reads SUN397 and CLEVR (SLIP datasets.py)."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from openslip.data.captions.decoding import read_text
from openslip.data.convert.layouts.cc_npy import read as read_npy
from openslip.data.source import Sample, Source
from openslip.data.sources.image_files import fingerprint, inside, need_files
from openslip.errors import MissingData, UserError
from openslip.regular_file import regular_file


class FileList(Source):
    """Source of images in the order of a list.

    Args:
        root: folder that the paths in the lists, and the lists themselves, are relative to.
        images: list of image paths: `.npy` with an array of strings, else text with a path per line.
        labels: list of their labels: `.npy`, else text with a label per line; None if the lines of `images` are
            `PATH LABEL`, split at the last blank.
        classes: names of the labels in label order, if the list holds names; None if it holds numbers from 0.

    Raises:
        MissingData: the folder or the list of images does not exist.
        UserError: the lists differ in length, a path is repeated, leads out of `root` or does not exist, or a label is
            neither a known name nor a number.
    """

    def __init__(
        self, *, root: str, images: str, labels: str | None = None, classes: Sequence[str] | None = None
    ) -> None:
        self.root = Path(os.path.normpath(root))
        self.classes = classes
        path = self.root / images
        if not path.exists():
            raise MissingData(f"{path}: no such file; expected a list of images (.npy or text)", str(path))
        if not (names := read_list(path)):
            raise UserError(f"{path} lists no image")
        if labels is None:
            rows = [split_line(str(line), path) for line in names]
            names, targets = [name for name, _ in rows], [label for _, label in rows]
        else:
            targets = read_list(self.root / labels)
        if len(names) != len(targets):
            raise UserError(
                f"{path} lists {len(names):,} images, but {self.root / str(labels)} {len(targets):,} labels"
            )
        files = [inside(self.root, str(name), path) for name in names]
        ((most_listed, times),) = Counter(files).most_common(1)
        if times > 1:
            raise UserError(f"{path} lists {most_listed} {times} times; expected each image once")
        need_files(files, str(path))
        self.files = [
            (file, label_of(target, classes, file, path)) for file, target in zip(files, targets, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Sample:
        path, label = self.files[index]
        return Sample(key=str(path), image=regular_file(path).read_bytes(), captions=(), label=label)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return fingerprint(self.root, self.files)


def read_list(path: Path) -> list[Any]:
    """Read a list of texts or numbers; nothing that an array of objects names is executed."""
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a list of labels (.npy or text)")
    if path.suffix.lower() == ".npy":
        values = read_npy(regular_file(path))
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def split_line(line: str, path: Path) -> tuple[str, str]:
    match line.rsplit(maxsplit=1):
        case [name, label]:
            return name, label
        case _:
            raise UserError(f"{path}: the line {line!r:.60} is not PATH LABEL; give the labels, or name a list of them")


def label_of(target: Any, classes: Sequence[str] | None, file: Path, path: Path) -> int:
    """Return the label of an image: the index of a class name, or the number itself.

    Digits in a text are a number only if there are no class names: a text `3` may mean a class of another number.
    """
    if isinstance(target, str) and classes is not None and target in classes:
        return list(classes).index(target)
    is_number = isinstance(target, int) or (isinstance(target, str) and classes is None)
    if is_number and str(target).isdecimal() and (classes is None or int(target) < len(classes)):
        return int(target)
    known = (
        "a number from 0"
        if classes is None
        else f"one of {', '.join(classes[:3])}, ... or a number below {len(classes)}"
    )
    raise UserError(f"{path}: {file} has label {target!r:.60}; expected {known}")
