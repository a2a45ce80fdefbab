"""Samples without files: images of noise, captions of different lengths, and some that cannot be used."""

from collections.abc import Collection

from shard_files import jpeg

from openslip.data.source import Sample, Source


class Numbered(Source):
    """Sample i has an image drawn from i and a caption of 1 to 30 words; those in `bad` have no readable image."""

    def __init__(self, size: int, bad: Collection[int] = ()) -> None:
        self.size = size
        self.bad = bad

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> Sample:
        image = jpeg(index)[: 300 if index in self.bad else None]
        caption = " ".join(["word"] * (1 + index * 7 % 30))
        return Sample(key=f"s{index}", image=image, captions=(caption,), label=None)

    @property
    def fingerprint(self) -> str:
        return f"numbered {self.size}"
