"""Contract of a source: a dataset of indexed samples, with a length and a fingerprint."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8


@dataclass(frozen=True)
class Sample:
    """One encoded image with its captions and label."""

    key: str  # names the sample in errors and reports
    image: bytes  # encoded
    captions: tuple[str, ...]  # training draws one of them; empty if the dataset has only labels
    label: int | None  # class index; None if the dataset has only captions


class Collection(NamedTuple):
    """Consecutive samples of a source that share one sampling weight, such as one dataset of a mixture."""

    parts: Int64[np.ndarray, " parts"]  # samples per part, i.e. per run stored together, such as a shard
    weight: float  # share of the samples that an epoch draws; 1 draws every sample once


class Source(ABC):
    """Map-style dataset of samples.

    Worker processes get a copy, so a source opens its files on first use and is pickled without open files.

    Attributes:
        problems: what was skipped or repaired when the dataset was read, one line per kind of problem.
        layout: which layout of a dataset this is and where, if several were looked for (`first_found`), else empty.
        places: files and addresses that the source reads; a mixture uses them to find what two sources share.
        expected_samples: number of samples of the published dataset, if known; downloads often lose some.
        classes: the dataset's own names of the labels in label order, such as the names of class folders.
        labels_are_sorted_names: whether labels are places in the sorted class folders, so that their order says
            nothing about the dataset; False if label numbers are stored in the dataset's files.
    """

    problems: tuple[str, ...] = ()
    layout: str = ""
    places: frozenset[str] = frozenset()
    expected_samples: int | None = None
    classes: Sequence[str] | None = None
    labels_are_sorted_names: bool = False

    @property
    def label_vectors(self) -> UInt8[np.ndarray, "images classes"] | None:
        """For every image of a multi-label dataset, 1 for each class that it shows, else 0; None for other datasets.

        The samples of a multi-label dataset have `label=None`.
        """
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Sample: ...

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes whenever the content or the order of the dataset changes.

        Sources of image files hash path and size of each image, because reading all of them would take longer than
        most evaluations: an image that is replaced by another of the same size is not noticed.
        """

    @property
    def collections(self) -> tuple[Collection, ...]:
        """Groups of samples that an epoch draws from; by default one group, with all samples as one part."""
        return (Collection(np.array([len(self)]), 1.0),)

    def prefetch(self, index: int, /) -> None:  # noqa: B027
        """Prefetch the part that holds a sample; called in the main process some time before the part is read."""
