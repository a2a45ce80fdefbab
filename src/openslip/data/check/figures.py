"""Numbers of all samples to the figures that a person reads. Quantiles are values that occur, not means of two."""

from dataclasses import dataclass

import numpy as np

from openslip.data.source import Source

FREQUENT = 5
PAIRS = 5
SMALL_SIDE = 224  # the published models' input: a picture with a shorter side is enlarged


@dataclass(frozen=True)
class CaptionFigures:
    """Attributes without a unit are counts; lengths are in tokens, start and end included."""

    count: int
    least_per_sample: int
    mean_per_sample: float
    most_per_sample: int
    without: int
    context_length: int
    mean_length: float
    median_length: int
    p90_length: int
    p99_length: int
    longest: int
    too_long: int
    distinct: int
    frequent: list[tuple[str, int]]


@dataclass(frozen=True)
class DuplicateFigures:
    """Pictures whose bytes are those of an earlier one, and the first few with that earlier one's key."""

    count: int
    among: int
    pairs: list[tuple[str, str]]


@dataclass(frozen=True)
class PictureFigures:
    """Sizes in bytes of all that could be read, and in pixels of those that were decoded."""

    median_bytes: int
    p99_bytes: int
    total_bytes: int
    decoded: int
    median_width: int
    median_height: int
    small: int


def caption_figures(
    source: Source, places: np.ndarray, samples: np.ndarray, captions: np.ndarray, context_length: int
) -> CaptionFigures | None:
    """None where no sample has a caption."""
    if len(captions) == 0:
        return None
    read = samples["captions"][samples["picture"] > 0]
    lengths = captions["tokens"]
    _, first, times = np.unique(captions["text"], return_index=True, return_counts=True)
    top = np.lexsort((first, -times))[:FREQUENT]
    ends = np.cumsum(samples["captions"], dtype=np.int64)
    frequent = []
    for caption, count in zip(first[top].tolist(), times[top].tolist(), strict=True):
        if count > 1:
            row = int(np.searchsorted(ends, caption, side="right"))
            text = source[int(places[row])].captions[caption - int(ends[row])]  # counted from the last, so negative
            frequent.append((text, count))
    return CaptionFigures(
        count=len(captions),
        least_per_sample=int(read.min()),
        mean_per_sample=float(read.mean()),
        most_per_sample=int(read.max()),
        without=int(np.count_nonzero(read == 0)),
        context_length=context_length,
        mean_length=float(lengths.mean()),
        median_length=quantile(lengths, 50),
        p90_length=quantile(lengths, 90),
        p99_length=quantile(lengths, 99),
        longest=int(lengths.max()),
        too_long=int(np.count_nonzero(lengths > context_length)),
        distinct=len(first),
        frequent=frequent,
    )


def duplicate_figures(source: Source, places: np.ndarray, samples: np.ndarray) -> DuplicateFigures:
    """The first of equal pictures is no duplicate."""
    there = samples["picture"] > 0
    hashes, places = samples["picture"][there], places[there]
    order = np.argsort(hashes, kind="stable")
    in_order = hashes[order]
    later = np.sort(order[1:][in_order[1:] == in_order[:-1]])
    pairs = []
    for row in later[:PAIRS]:
        first = order[np.searchsorted(in_order, hashes[row])]
        pairs.append((source[int(places[row])].key, source[int(places[first])].key))
    return DuplicateFigures(count=len(later), among=len(hashes), pairs=pairs)


def picture_figures(samples: np.ndarray) -> PictureFigures | None:
    """None where no picture could be read."""
    sizes = samples["bytes"][samples["picture"] > 0]
    if len(sizes) == 0:
        return None
    decoded = samples[samples["width"] > 0]
    return PictureFigures(
        median_bytes=quantile(sizes, 50),
        p99_bytes=quantile(sizes, 99),
        total_bytes=int(sizes.sum(dtype=np.int64)),
        decoded=len(decoded),
        median_width=quantile(decoded["width"], 50) if len(decoded) else 0,
        median_height=quantile(decoded["height"], 50) if len(decoded) else 0,
        small=int(np.count_nonzero(np.minimum(decoded["width"], decoded["height"]) < SMALL_SIDE)),
    )


def quantile(values: np.ndarray, per_cent: int) -> int:
    """The least value that so many per cent of the values do not exceed."""
    return int(np.percentile(values, per_cent, method="inverted_cdf"))
