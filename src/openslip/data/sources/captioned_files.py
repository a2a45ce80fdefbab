"""Image files with their captions, for retrieval."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from openslip.data.source import Sample, Source
from openslip.data.sources.image_files import fingerprint, inside, need_files
from openslip.errors import UserError
from openslip.regular_file import regular_file


class CaptionedFiles(Source):
    """Source of image files with one caption or more each; equal captions are kept, as retrieval counts them.

    Args:
        root: folder of the images.
        captions: path of each image, relative to `root`, to its captions.
        listed_in: file that the captions come from.

    Raises:
        UserError: no image is listed, one is missing, its path leads out of the folder, or it has no caption or an
            empty one.
    """

    def __init__(self, root: Path, captions: Mapping[str, Sequence[str]], listed_in: Path) -> None:
        self.root = Path(os.path.normpath(root))
        if not captions:
            raise UserError(f"{listed_in} lists no image")
        if bare := next((name for name, texts in captions.items() if not texts), None):
            raise UserError(f"{listed_in}: {bare} has no caption; retrieval needs one for every image")
        if blank := next((name for name, texts in captions.items() if not all(map(str.strip, texts))), None):
            raise UserError(f"{listed_in}: {blank} has an empty caption; write its text or remove it")
        paths = [inside(self.root, name, listed_in) for name in captions]
        need_files(paths, str(listed_in))
        self.files = [(path, tuple(texts)) for path, texts in zip(paths, captions.values(), strict=True)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Sample:
        path, captions = self.files[index]
        return Sample(key=str(path), image=regular_file(path).read_bytes(), captions=captions, label=None)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return fingerprint(self.root, self.files)
