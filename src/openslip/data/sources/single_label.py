"""The images of a multi-label dataset that show exactly one class, for evaluations that need one label per image."""

from dataclasses import replace

import numpy as np

from openslip.data.source import Sample, Source
from openslip.errors import UserError


class SingleLabel(Source):
    """Source of the samples with exactly one class, which becomes their label.

    Args:
        source: samples with `label_vectors`.

    Raises:
        UserError: the source has no label vectors.
    """

    def __init__(self, source: Source) -> None:
        if (vectors := source.label_vectors) is None:
            raise UserError("single label: the source has no label vectors; expected a multi-label dataset")
        self.source = source
        self.rows = np.flatnonzero(vectors.sum(axis=1, dtype=np.int64) == 1)
        self.labels = vectors[self.rows].argmax(axis=1)
        self.classes = source.classes
        self.places, self.layout = source.places, source.layout
        self.problems = source.problems

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Sample:
        return replace(self.source[int(self.rows[index])], label=int(self.labels[index]))

    @property
    def fingerprint(self) -> str:
        return f"those of {self.source.fingerprint} with one label"

    def prefetch(self, index: int, /) -> None:
        self.source.prefetch(int(self.rows[index]))
