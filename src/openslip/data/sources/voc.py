"""PASCAL VOC 2007: images that show objects of any of 20 classes. Everingham et al. 2010."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from openslip.data.captions.decoding import read_text
from openslip.data.source import Sample, Source
from openslip.data.sources.image_files import fingerprint, inside, need_files
from openslip.errors import MissingData, UserError
from openslip.regular_file import regular_file


class Voc2007(Source):
    """Multi-label source of a split of `VOCdevkit/VOC2007`.

    A class counts as shown in an image if the image has any object of it. The lists in `ImageSets/Main` mark classes
    whose only objects are difficult to recognise with 0. They count as shown, as in CLIP_benchmark
    (datasets/voc2007.py); VOC's own development kit would ignore these images for the average precision of the class.

    Args:
        root: the folder `VOC2007` with `ImageSets/Main` and `JPEGImages`.
        split: name of the split, such as `test` or `trainval`.

    Raises:
        MissingData: the folder does not exist.
        UserError: the lists of the classes disagree about the images, or an image is missing.
    """

    labels_are_sorted_names = True

    def __init__(self, *, root: str, split: str) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise MissingData(f"{root}: no such folder; expected VOC 2007's ImageSets and JPEGImages", root)
        folder, end = self.root / "ImageSets" / "Main", f"_{split}.txt"
        self.classes = sorted(path.name.removesuffix(end) for path in folder.glob(f"*{end}"))
        if not self.classes:
            raise UserError(
                f"{folder}: no lists such as aeroplane{end}; is split={split} one of test, train, trainval, val?"
            )
        columns = [read_list(folder / f"{name}{end}") for name in self.classes]
        names = list(columns[0])
        if other := [name for name, column in zip(self.classes, columns, strict=True) if list(column) != names]:
            raise UserError(
                f"{folder}/{other[0]}{end} lists other images than {self.classes[0]}{end}; download it again"
            )
        images = Path(os.path.normpath(self.root / "JPEGImages"))
        self.paths = [inside(images, f"{name}.jpg", folder) for name in names]
        need_files(self.paths, str(folder))
        self.vectors = np.array([[column[name] >= 0 for column in columns] for name in names], np.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Sample:
        path = self.paths[index]
        return Sample(key=str(path), image=regular_file(path).read_bytes(), captions=(), label=None)

    @property
    def label_vectors(self) -> UInt8[np.ndarray, "images classes"]:
        return self.vectors

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return fingerprint(Path(os.path.normpath(self.root)), zip(self.paths, self.vectors.tolist(), strict=True))


def read_list(path: Path) -> dict[str, int]:
    """Read `IMAGE 1`, `IMAGE 0` (only difficult objects) or `IMAGE -1` (no object) per line."""
    marks: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        match line.split():
            case [name, ("1" | "0" | "-1") as mark] if name not in marks:
                marks[name] = int(mark)
            case []:
                pass
            case _:
                raise UserError(f"{path}, line {number}: expected an image's name, once, and 1, 0 or -1: {line:.40}")
    return marks
