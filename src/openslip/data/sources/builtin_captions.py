"""Captions for the held-out images of the built-in dataset, which are stored with labels only."""

from dataclasses import replace

import numpy as np

from openslip.data.source import Sample, Source
from openslip.data.sources.builtin import FORMAT, Split, builtin, caption, combinations


def captioned(root: str, split: Split) -> Source:
    """Open a split of the built-in dataset, and draw a caption for every image as for the training images.

    Args:
        root: folder of the dataset, which is written there on first use.
        split: `unseen` or `seen`; the training images have captions of their own.
    """
    return Captioned(builtin(root, split))


class Captioned(Source):
    """Images of the built-in dataset, each with a caption of its label; a sample always gets the same caption.

    Args:
        source: labelled images of the built-in dataset.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.table = combinations()
        self.classes, self.problems, self.places = source.classes, source.problems, source.places

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.source[index]
        assert sample.label is not None
        text = caption(self.table[sample.label], np.random.default_rng([FORMAT, index]))
        return replace(sample, captions=(text,))

    @property
    def fingerprint(self) -> str:
        return f"captioned {self.source.fingerprint}"
