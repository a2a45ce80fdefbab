"""Contract: a source is a collection of samples with a length, a place for each, and a fingerprint."""

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One picture and what is said of it.

    Attributes:
        key: names the sample in errors and reports.
        image: the encoded picture.
        captions: all of them, none where the collection has only labels.
        label: class index, None where the collection has only captions.
    """

    key: str
    image: bytes
    captions: tuple[str, ...]
    label: int | None


class Source(ABC):
    """Samples by index. Loader processes get a copy, so a source opens files when first asked and pickles without them.

    Attributes:
        problems: what was left out or mended when the collection was read, one line per kind.
    """

    problems: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Sample: ...

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes whenever the collection's content or order does."""
