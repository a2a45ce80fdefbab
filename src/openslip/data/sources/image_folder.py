"""Labelled images in one folder per class, as in ImageNet's validation set."""

import hashlib
from functools import cached_property
from pathlib import Path

from openslip.data.class_names import label_order
from openslip.data.image.formats import IMAGE_SUFFIXES
from openslip.data.listing import is_hidden, is_image, others_line, visible_files
from openslip.data.source import Sample, Source
from openslip.errors import MissingData, UserError
from openslip.regular_file import regular_file


class ImageFolder(Source):
    """Source of images in `ROOT/CLASS/*.jpg`; the sorted class folders (see `label_order`) are labelled from 0."""

    labels_are_sorted_names = True

    def __init__(self, *, root: str) -> None:
        self.root = Path(root)
        self.classes = folder_names(root)
        self.files, self.problems = class_files(self.root, self.classes)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Sample:
        path, label = self.files[index]
        return Sample(key=str(path), image=regular_file(path).read_bytes(), captions=(), label=label)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        names = "\n".join(f"{path.relative_to(self.root)} {path.stat().st_size}" for path, _ in self.files)
        return hashlib.sha256(names.encode()).hexdigest()


def folder_names(root: str) -> list[str]:
    """List the names of the class folders in the order of their labels.

    Raises:
        MissingData: the folder does not exist.
        UserError: it holds no folder.
    """
    path = Path(root)
    if not path.is_dir():
        raise MissingData(f"{root}: no such folder; expected one folder per class with its images", root)
    names = label_order(entry.name for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    if not names:
        raise UserError(f"{root}: no class folders; expected one folder per class with its images")
    return names


def class_files(root: Path, names: list[str]) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """List images with their labels, sorted by class and path, and describe what was skipped, one line per kind.

    Args:
        root: folder of the class folders.
        names: names of the class folders, in label order.

    Raises:
        UserError: a class has no image.
    """
    files: list[tuple[Path, int]] = []
    outside = visible_files(root)
    others = [path for path in outside if not is_image(path)]
    inner: list[set[str]] = []  # per class, its direct subfolders with images
    for label, name in enumerate(names):
        paths = visible_files(root / name, below=True)
        images = [path for path in paths if is_image(path)]
        if not images:
            holds = f"{len(paths)} files and no image" if paths else "no image"
            raise UserError(
                f"{root / name} holds {holds} (.{', .'.join(IMAGE_SUFFIXES)}), but would be class {label}: "
                "remove it, or move it out of ROOT"
            )
        files += [(path, label) for path in images]
        inner.append({path.relative_to(root / name).parent.as_posix().split("/")[0] for path in images})
        others += [path for path in paths if not is_image(path)]
    skipped = [others_line(others, root)] if others else []
    if lost := [path.name for path in outside if is_image(path)]:
        skipped.append(f"{len(lost)} x image in no class folder, such as {lost[0]}")
    shared = sorted(set.intersection(*inner))
    if all("." not in folders for folders in inner) and shared and (len(names) > 1 or len(shared) > 1):
        skipped.append(
            f"{len(names)} x class folder, such as {', '.join(names[:3])}, with a folder {shared[0]} in it: "
            "is ROOT one folder too high?"
        )
    return files, tuple(skipped)
