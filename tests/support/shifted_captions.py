"""The built-in dataset with each image's captions moved to the next image, as a fault in a reader would do."""

from dataclasses import replace

from openslip.data.source import Collection, Sample, Source
from openslip.data.sources import builtin as drawn


class ShiftedCaptions(Source):
    """A source whose samples have the captions of their predecessors."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.source[index], captions=self.source[index - 1 if index else len(self) - 1].captions)

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    @property
    def collections(self) -> tuple[Collection, ...]:
        return self.source.collections


def plant() -> None:
    """Shift the captions of the training split in this process, whatever the config says."""
    opened = drawn.builtin

    def shifted(root: str, split: drawn.Split, shuffle_captions: bool = False) -> Source:
        source = opened(root, split, shuffle_captions)
        return ShiftedCaptions(source) if split == "train" else source

    drawn.builtin = shifted
