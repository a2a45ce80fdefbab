"""Datasets that torchvision's own classes read from its own layouts; nothing is downloaded.

https://docs.pytorch.org/vision/stable/datasets.html
"""

import hashlib
import importlib
import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from openslip.data.image.decode import MAX_PIXELS
from openslip.data.image.png import png
from openslip.data.listing import is_image, visible_files
from openslip.data.source import Sample, Source
from openslip.data.sources.image_files import fingerprint, inside, need_files
from openslip.errors import MissingData, MissingPackage, UserError, first_line
from openslip.regular_file import regular_file

# Where each class of torchvision 0.29 looks for its files, as a glob below ROOT. Classes that unpickle files without a
# check (LSUN), or whose labels do not count from 0 (CLEVRClassification), are left out; CIFAR's pickles are read only
# after torchvision has compared their MD5 with the published one.
LOCATIONS = {
    "CIFAR10": "cifar-10-batches-py",
    "CIFAR100": "cifar-100-python",
    "Caltech101": "caltech101/101_ObjectCategories",
    "Country211": "country211",
    "DTD": "dtd/dtd",
    "EuroSAT": "eurosat/2750",
    "FER2013": "fer2013",
    "FGVCAircraft": "fgvc-aircraft-2013b",
    "FashionMNIST": "FashionMNIST/raw",
    "Flowers102": "flowers-102",
    "Food101": "food-101",
    "GTSRB": "gtsrb/GTSRB",
    "MNIST": "MNIST/raw",
    "OxfordIIITPet": "oxford-iiit-pet",
    "PCAM": "pcam",
    "RenderedSST2": "rendered-sst2",
    "STL10": "stl10_binary",
    "SUN397": "SUN397",
    "SVHN": "*_32x32.mat",
    "StanfordCars": "stanford_cars",
}


# Files up to WHOLE bytes are hashed whole, of larger ones so many blocks of so many bytes.
WHOLE, BLOCKS, BLOCK = 2**26, 64, 2**16


class TorchvisionSet(Source):
    """Source of a dataset of `torchvision.datasets`.

    If the class takes a `loader` of files, samples are the files as they are, sorted by path. Otherwise they are the
    images that the class returns, encoded as PNG, which keeps every pixel. Both give the pixels that torchvision gives.

    Args:
        dataset: name of the class, one of `LOCATIONS`.
        root: folder that torchvision calls `root`.
        arguments: further arguments of the class, such as `{split: test}` or `{train: false}`.

    Raises:
        MissingData: none of the dataset's files exist.
        MissingPackage: torchvision needs another package to read them.
        UserError: torchvision refuses the files (some are missing or have a wrong checksum) or the arguments.
    """

    def __init__(self, *, dataset: str, root: str, arguments: dict[str, Any]) -> None:
        if dataset not in LOCATIONS:
            raise UserError(f"dataset={dataset}: expected one of torchvision's {', '.join(LOCATIONS)}")
        self.dataset = dataset
        self.root = Path(root).expanduser()
        self.arguments = arguments
        self.locations = sorted(self.root.glob(LOCATIONS[dataset]))
        if not self.locations:
            place = str(self.root / LOCATIONS[dataset])
            raise MissingData(f"{place}: no such file or folder, where torchvision's {dataset} is read from", place)
        images = self.open()
        self.classes = next(
            (getattr(images, name) for name in ("classes", "categories") if hasattr(images, name)), None
        )
        self.files: list[tuple[Path, int]] | None = None
        if "loader" in inspect.signature(type(images)).parameters:
            listed = map(images.__getitem__, range(len(images)))
            self.root = Path(os.path.normpath(self.root))
            self.files = sorted(
                (inside(self.root, os.path.relpath(path, self.root), self.locations[0]), int(label))
                for path, label in listed
            )
            need_files([path for path, _ in self.files], f"torchvision's {dataset}")
        self.size = len(images)
        self.images: Any = None if self.files else images

    def open(self) -> Any:
        """Open the dataset with torchvision; its loader, if it has one, returns paths."""
        try:
            kind = getattr(importlib.import_module("torchvision.datasets"), self.dataset)
            loader = {"loader": Path} if "loader" in inspect.signature(kind).parameters else {}
            return kind(str(self.root), **self.arguments, **loader)
        except Exception as error:  # torchvision raises many types on damaged files; and some hide an ImportError
            absent = error if isinstance(error, ImportError) else error.__context__
            if isinstance(absent, ImportError):
                raise MissingPackage(
                    f"torchvision's {self.dataset} needs {absent.name}; pip install 'openslip[eval]'"
                ) from error
            reason = first_line(error).partition(" You can use download")[0]
            raise UserError(
                f"{self.locations[0]}: torchvision's {self.dataset}({given(self.arguments)}) cannot be read "
                f"({type(error).__name__}: {reason})"
            ) from error

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> Sample:
        if self.files is not None:
            path, label = self.files[index]
            return Sample(key=str(path), image=regular_file(path).read_bytes(), captions=(), label=label)
        if self.images is None:
            self.images = self.open()
        try:
            with limited_pixels():
                image, label = self.images[index]
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{self.locations[0]}: sample {index} cannot be read ({first_line(error)})") from error
        label = None if label is None else int(label)
        return Sample(key=f"{self.locations[0]}:{index}", image=png(image), captions=(), label=label)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        settings = f"{self.dataset} {sorted(self.arguments.items())} {self.size}"
        if self.files is not None:
            return f"{settings} {fingerprint(self.root, self.files)}"
        return f"{settings} {content_hash(self.root, self.locations)}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "images": None}  # a dataset may hold a module or large arrays: each process opens it


@contextmanager
def limited_pixels() -> Iterator[None]:
    """Make Pillow, which torchvision decodes with, refuse the images that are refused everywhere else."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns of larger ones, and refuses twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def content_hash(root: Path, places: list[Path]) -> str:
    """Hash all files below the places: images by path and size, others, which hold arrays or labels, by content too.

    Of a file of more than `WHOLE` bytes, only evenly spaced blocks are read: PCAM and STL10 have several GB, of which
    one evaluation reads a part.
    """
    digest = hashlib.sha256()
    for place in places:
        for path in visible_files(place, below=True) if place.is_dir() else [place]:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(root)} {size}\n".encode("utf-8", "surrogateescape"))
            if is_image(path):
                continue
            with regular_file(path).open("rb") as file:
                if size <= WHOLE:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
                    continue
                for number in range(BLOCKS):
                    file.seek((size - BLOCK) * number // (BLOCKS - 1))
                    digest.update(file.read(BLOCK))
    return digest.hexdigest()


def given(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())
