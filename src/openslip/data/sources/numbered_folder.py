"""Class folders named by their labels, as in ImageNetV2's `imagenetv2-matched-frequency-format-val`.

Recht et al. 2019, arXiv:1902.10811. Sorted as text, as ImageFolder of torchvision does, `10` would come before `2`.
"""

from functools import cached_property
from pathlib import Path

from openslip.data.source import Sample, Source
from openslip.data.sources.image_files import fingerprint
from openslip.data.sources.image_folder import class_files, folder_names
from openslip.errors import UserError
from openslip.regular_file import regular_file


class NumberedFolder(Source):
    """Source of images in `ROOT/LABEL/*.jpg`, where the folders are `0`, `1`, ... without a gap.

    The labels have no names.

    Args:
        root: folder of the class folders.
        num_classes: expected number of folders; None accepts any number.

    Raises:
        MissingData: the folder does not exist.
        UserError: a folder is missing, or one is not a label.
    """

    def __init__(self, *, root: str, num_classes: int | None = None) -> None:
        self.root = Path(root)
        names = folder_names(root)
        expected = [str(label) for label in range(len(names) if num_classes is None else num_classes)]
        if other := sorted(set(names) - set(expected)):
            raise UserError(
                f"{root}: the folder {other[0]} is no label from 0 to {len(expected) - 1}; expected folders 0, 1, ... "
                "without a gap, and nothing else"
            )
        if missing := [name for name in expected if name not in names]:
            raise UserError(f"{root}: {len(missing)} of {len(expected)} class folders are missing, first {missing[0]}")
        self.files, self.problems = class_files(self.root, names)  # sorted by number, so that places are labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Sample:
        path, label = self.files[index]
        return Sample(key=str(path), image=regular_file(path).read_bytes(), captions=(), label=label)

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return fingerprint(self.root, self.files)
