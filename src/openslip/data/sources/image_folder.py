"""Images in one folder per class, as ImageNet's validation set is laid out."""

import hashlib
from pathlib import Path

from openslip.data.class_names import label_order
from openslip.data.source import Sample, Source
from openslip.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageFolder(Source):
    """`ROOT/CLASS/*.jpg`; a label is the place of its class folder: in alphabetical order, or in that of numbers."""

    def __init__(self, *, root: str) -> None:
        self.root = Path(root)
        self.classes = folder_names(root)
        self.files = [
            (path, label) for label, name in enumerate(self.classes) for path in image_files(self.root / name)
        ]
        if not self.files:
            raise UserError(f"{root}: its class folders hold no image ({', '.join(SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Sample:
        path, label = self.files[index]
        return Sample(key=str(path), image=path.read_bytes(), captions=(), label=label)

    @property
    def fingerprint(self) -> str:
        names = "\n".join(f"{path.relative_to(self.root)} {path.stat().st_size}" for path, _ in self.files)
        return hashlib.sha256(names.encode()).hexdigest()


def folder_names(root: str) -> list[str]:
    """Names of the class folders, in the order of their labels."""
    path = Path(root)
    if not path.is_dir():
        raise UserError(f"{root}: no such folder; expected one folder per class with its images")
    names = label_order(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{root}: no class folders; expected one folder per class with its images")
    return names


def image_files(folder: Path) -> list[Path]:
    """All images below a folder, in the order of their paths."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]
