"""A source whose captions are permuted among its images: a control, from which no image-text model can learn."""

import numpy as np

from openslip.data.source import Collection, Sample, Source


class ShuffledCaptions(Source):
    """Source of the images of another source, each with the captions of one that is drawn for it, from a fixed seed."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.others = np.random.default_rng(0).permutation(len(source))
        self.classes = source.classes
        self.labels_are_sorted_names = source.labels_are_sorted_names
        self.places, self.layout = source.places, source.layout
        self.problems, self.expected_samples = source.problems, source.expected_samples

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.source[index]
        captions = self.source[int(self.others[index])].captions
        return Sample(key=sample.key, image=sample.image, captions=captions, label=sample.label)

    @property
    def fingerprint(self) -> str:
        return f"shuffled captions of {self.source.fingerprint}"

    @property
    def collections(self) -> tuple[Collection, ...]:
        return self.source.collections

    def prefetch(self, index: int, /) -> None:
        self.source.prefetch(index)
