"""Mixture of several datasets in one source; an epoch draws a given share of each."""

import hashlib
from bisect import bisect_right
from itertools import combinations

import numpy as np

from openslip.data.source import Collection, Sample, Source
from openslip.errors import UserError


class Mixture(Source):
    """Concatenation of sources; the sample order of an epoch mixes them.

    Args:
        sources: name to source.
        weights: name to the share of the source that an epoch draws, 0 to 1. With 0.25, an epoch draws a quarter
            without replacement, the next epoch the next quarter, and the fifth begins again in another order.
    """

    def __init__(self, *, sources: dict[str, Source], weights: dict[str, float | int]) -> None:
        if sources.keys() != weights.keys():
            raise UserError(
                f"data.source.weights names {', '.join(weights) or 'nothing'}, data.source.sources "
                f"{', '.join(sources) or 'nothing'}: give every source a weight of 0 to 1"
            )
        for name, weight in weights.items():
            if not 0 <= weight <= 1:
                raise UserError(
                    f"data.source.weights.{name}={weight}: expected a share of 0 to 1; to draw samples several times "
                    "an epoch, give their source several names"
                )
        self.sources = list(sources.values())
        self.weights = [float(weights[name]) for name in sources]
        self.ends = np.cumsum([len(source) for source in self.sources]).tolist()
        expected = [source.expected_samples for source in self.sources]
        self.expected_samples = None if None in expected else sum(number for number in expected if number)
        self.places = frozenset().union(*(source.places for source in self.sources))
        self.problems = (
            *(f"{name}: {line}" for name, source in sources.items() for line in source.problems),
            *(
                f"{first} and {second}: {len(shared)} x shard in both, whose samples are drawn for each of them"
                for first, second in combinations(sources, 2)
                if (shared := sources[first].places & sources[second].places)
            ),
        )

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int, /) -> Sample:
        source, place = self.find(index)
        return source[place]

    def find(self, index: int) -> tuple[Source, int]:
        """Find the source that holds a sample, and the index of the sample in that source."""
        number = bisect_right(self.ends, index)
        return self.sources[number], index - (self.ends[number - 1] if number else 0)

    @property
    def fingerprint(self) -> str:
        parts = [f"{source.fingerprint} {weight}" for source, weight in zip(self.sources, self.weights, strict=True)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def collections(self) -> tuple[Collection, ...]:
        return tuple(
            Collection(inner.parts, inner.weight * weight)
            for source, weight in zip(self.sources, self.weights, strict=True)
            for inner in source.collections
        )

    def prefetch(self, index: int, /) -> None:
        source, place = self.find(index)
        source.prefetch(place)
