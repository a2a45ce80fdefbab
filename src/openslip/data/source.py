"""Contract: a source is a dataset of samples with a length, a place for each, and a fingerprint."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True)
class Sample:
    """One image and what is said of it."""

    key: str  # names the sample in errors and reports
    image: bytes  # encoded
    captions: tuple[str, ...]  # all that training may draw, none where the dataset has only labels
    label: int | None  # class index, None where the dataset has only captions


class Collection(NamedTuple):
    """Consecutive samples of a source that are drawn together."""

    parts: Int64[np.ndarray, " parts"]  # lengths of runs that are stored together, such as shards; permuted first
    weight: float  # the share that an epoch draws, 1 for every sample


class Source(ABC):
    """Samples by index. Loader processes get a copy, so a source opens files when first asked and pickles without them.

    Attributes:
        problems: what was skipped or repaired when the dataset was read, one line per kind.
        places: files and addresses that it reads, where a mixture must know which two sources share.
        expected_samples: of the published dataset, where that is known; some of it is often lost.
        classes: what the dataset itself calls its labels, in their order, such as the names of class folders.
    """

    problems: tuple[str, ...] = ()
    places: frozenset[str] = frozenset()
    expected_samples: int | None = None
    classes: Sequence[str] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Sample: ...

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever the dataset's content or order does."""

    @property
    def collections(self) -> tuple[Collection, ...]:
        """What an epoch draws from; by default all samples, as one part."""
        return (Collection(np.array([len(self)]), 1.0),)

    def prefetch(self, index: int, /) -> None:  # noqa: B027
        """Make the sample's part quick to read; called in the main process a while before that part is read."""
