"""ObjectNet: objects in unusual poses and places, of which 113 classes are also ImageNet's. Barbu et al. 2019.

Two protocols are in use: the 113 classes under ObjectNet's names (CLIP_benchmark, datasets/objectnet.py), and
ImageNet's 1000 classes, of which several may be right for an image (WiSE-FT, src/datasets/objectnet.py).
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from openslip.data.convert.metadata import read_json
from openslip.data.image.decode import open_image
from openslip.data.image.png import png
from openslip.data.source import Sample, Source
from openslip.data.sources.image_files import fingerprint
from openslip.data.sources.image_folder import class_files
from openslip.errors import MissingData, UserError
from openslip.regular_file import regular_file

ID_MAPPING = "pytorch_to_imagenet_2012_id.json"
BORDER = 2  # pixels: every image has a red frame, which its authors ask to crop (README of objectnet-1.0)


class ObjectNet(Source):
    """Source of the images of the shared classes, without their red border.

    Args:
        root: the folder `objectnet-1.0`, with `images` and `mappings`.
        labels: `own`: the classes in the order of their folders, under ObjectNet's names in lower case; `imagenet`: a
            label vector per image, with 1 for each of ImageNet's classes that is right for it.

    Raises:
        MissingData: the folder of images does not exist.
        UserError: a mapping or the folder of a class is missing, or the mappings do not fit together.
    """

    labels_are_sorted_names = True

    def __init__(self, *, root: str, labels: Literal["own", "imagenet"] = "own") -> None:
        if labels not in ("own", "imagenet"):
            raise UserError(f"labels={labels}: expected own or imagenet")
        self.root = Path(root) / "images"
        if not self.root.is_dir():
            raise MissingData(f"{self.root}: no such folder; expected a folder of images per class", str(self.root))
        mappings = Path(root) / "mappings"
        names = read_mapping(mappings / "folder_to_objectnet_label.json")
        descriptions = read_mapping(mappings / "objectnet_to_imagenet_1k.json")
        folders = sorted(folder for folder, name in names.items() if name in descriptions)
        if unknown := descriptions.keys() - names.values():
            raise UserError(f"{mappings}: no folder has the label {min(unknown)}, which objectnet_to_imagenet_1k maps")
        if absent := [folder for folder in folders if not (self.root / folder).is_dir()]:
            raise UserError(f"{self.root / absent[0]}: no such folder, though a shared class: download it again")
        self.files, self.problems = class_files(self.root, folders)
        self.classes = [names[folder].lower() for folder in folders] if labels == "own" else None
        self.vectors: np.ndarray | None = None
        if labels == "imagenet":
            of_class = imagenet_vectors(mappings, [descriptions[names[folder]].split("; ") for folder in folders])
            self.vectors = of_class[[label for _, label in self.files]]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Sample:
        path, label = self.files[index]
        image = open_image(path, str(path))
        inner = image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))
        return Sample(key=str(path), image=png(inner), captions=(), label=label if self.vectors is None else None)

    @property
    def label_vectors(self) -> UInt8[np.ndarray, "images classes"] | None:
        return self.vectors

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"{fingerprint(self.root, self.files)} {BORDER} {self.vectors is None}"


def imagenet_vectors(mappings: Path, descriptions: list[list[str]]) -> UInt8[np.ndarray, "objectnet imagenet"]:
    """Mark ImageNet's classes that each class of ObjectNet corresponds to.

    Line i of `imagenet_to_label_2012_v2` describes the class with id i of 2012, and `pytorch_to_imagenet_2012_id.json`
    maps labels, in the usual order of WordNet ids, to these ids.

    Args:
        mappings: folder of the published mappings.
        descriptions: for every class of ObjectNet, the descriptions of ImageNet's.
    """
    path = mappings / "imagenet_to_label_2012_v2"
    label_of_id = {int(number): int(label) for label, number in read_mapping(mappings / ID_MAPPING).items()}
    lines = existing(path).read_text(encoding="utf-8").splitlines()
    labels = {line.strip(): label_of_id.get(number) for number, line in enumerate(lines)}
    vectors = np.zeros((len(descriptions), len(label_of_id)), np.uint8)
    for vector, wanted in zip(vectors, descriptions, strict=True):
        for description in wanted:
            label = labels.get(description)
            if label is None:
                raise UserError(f"{path} and {ID_MAPPING}: no label for {description!r:.60}; download them again")
            vector[label] = 1
    return vectors


def existing(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: no such file; it belongs to objectnet-1.0: download it again")
    return regular_file(path)


def read_mapping(path: Path) -> dict[str, Any]:
    mapping = read_json(existing(path))
    if not isinstance(mapping, dict):
        raise UserError(f"{path} holds a {type(mapping).__name__}, not a mapping; download it again")
    return mapping
