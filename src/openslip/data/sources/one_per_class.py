"""The first image of each class with the class's name as its caption, for retrieval in a dataset without captions."""

from dataclasses import replace

from openslip.data.source import Sample, Source
from openslip.errors import UserError


class OnePerClass(Source):
    """Source of one sample per class that occurs in a labelled source; all captions differ.

    Args:
        source: samples with labels; its `classes` become the captions.

    Raises:
        UserError: the source has no class names, or a sample has no label.
    """

    def __init__(self, source: Source) -> None:
        if source.classes is None:
            raise UserError("one image per class: the source has no class names to take as captions")
        self.source = source
        self.names = list(source.classes)
        self.places, self.layout = source.places, source.layout
        self.problems = tuple(source.problems)
        first: dict[int, int] = {}
        for index in range(len(source)):
            sample = source[index]
            if sample.label is None:
                raise UserError(f"sample {sample.key!r} has no label: one image per class needs one for every image")
            first.setdefault(sample.label, index)
        self.indices = [first[label] for label in sorted(first)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.source[self.indices[index]]
        assert sample.label is not None
        return replace(sample, captions=(self.names[sample.label],))

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint} one per class"
