"""Evenly spaced samples of another source, for trial evaluations."""

import numpy as np
from jaxtyping import UInt8

from openslip.data.source import Sample, Source


class Subset(Source):
    """Source of `num_samples` samples of a larger source, evenly spaced so that no class is favoured."""

    def __init__(self, source: Source, num_samples: int) -> None:
        self.source = source
        self.num_samples = num_samples
        self.classes = source.classes
        self.labels_are_sorted_names = source.labels_are_sorted_names
        self.places, self.layout = source.places, source.layout
        self.problems = (*source.problems, f"only {num_samples} of {len(source)} samples are used")

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int, /) -> Sample:
        return self.source[self.place(index)]

    @property
    def label_vectors(self) -> UInt8[np.ndarray, "images classes"] | None:
        vectors = self.source.label_vectors
        return None if vectors is None else vectors[[self.place(index) for index in range(self.num_samples)]]

    def place(self, index: int) -> int:
        """Return the index in the larger source."""
        return index * len(self.source) // self.num_samples

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint} {self.num_samples}"

    def prefetch(self, index: int, /) -> None:
        self.source.prefetch(self.place(index))
