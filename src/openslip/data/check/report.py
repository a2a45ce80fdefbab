"""Report on a dataset: statistics of all samples as rows of text. Quantiles are values that occur, not means of two."""

import numpy as np
from rich.filesize import decimal

from openslip.data.source import Source

FREQUENT = 5
PAIRS = 5
SMALL_SIDE = 224  # pixels; input size of the published models, to which smaller images are enlarged
MAX_TEXT = 70

Rows = list[tuple[str, str]]  # label and text


def caption_rows(
    source: Source, places: np.ndarray, samples: np.ndarray, captions: np.ndarray, context_length: int
) -> Rows:
    if len(captions) == 0:
        return [("captions", "none")]
    read = samples["captions"][samples["image"] > 0]
    per_sample = f"{read.min()} to {read.max()}, mean {read.mean():.2f}"
    if read.min() == read.max():
        per_sample = str(read.min())
    if without := int(np.count_nonzero(read == 0)):
        per_sample += f"; {number(without)} samples have none"
    lengths = captions["tokens"]
    median, p90, p99, longest = quantiles(lengths, 50, 90, 99, 100)
    too_long = int(np.count_nonzero(lengths > context_length))
    _, first, times = np.unique(captions["text"], return_index=True, return_counts=True)
    rows = [
        ("captions per sample", per_sample),
        (
            "tokens per caption",
            f"mean {lengths.mean():.1f}, median {median}, p90 {p90}, p99 {p99}, longest {number(longest)}; "
            "start and end included",
        ),
        ("cut off", f"{share(too_long, len(captions))}: captions of more than {context_length} tokens"),
        ("distinct captions", share(len(first), len(captions))),
    ]
    ends = np.cumsum(samples["captions"], dtype=np.int64)
    for top in np.lexsort((first, -times))[:FREQUENT]:
        caption, count = int(first[top]), int(times[top])
        if count > 1:
            row = int(np.searchsorted(ends, caption, side="right"))
            text = source[int(places[row])].captions[caption - int(ends[row])]  # negative index, from the end
            rows.append(("  most frequent", f"{number(count)} x {shortened(text)}"))
    return rows


def image_rows(source: Source, places: np.ndarray, samples: np.ndarray) -> Rows:
    is_read = samples["image"] > 0
    places, samples = places[is_read], samples[is_read]
    _, first, inverse = np.unique(samples["image"], return_index=True, return_inverse=True)
    earliest = first[inverse]
    duplicates = np.flatnonzero(earliest != np.arange(len(samples)))  # the first of equal images is not a duplicate
    rows = [("duplicate images", f"{share(len(duplicates), len(samples))}: the same bytes as an earlier one")]
    for row in duplicates[:PAIRS]:
        rows.append(("  the same", f"{source[int(places[row])].key} = {source[int(places[earliest[row]])].key}"))
    if len(samples):
        median, p99 = map(decimal, quantiles(samples["bytes"], 50, 99))
        total = decimal(int(samples["bytes"].sum(dtype=np.int64)))
        rows.append(("image bytes", f"median {median}, p99 {p99}, all {total}"))
    decoded = samples[samples["width"] > 0]
    if len(decoded):
        (width,), (height,) = quantiles(decoded["width"], 50), quantiles(decoded["height"], 50)
        small = int(np.count_nonzero(np.minimum(decoded["width"], decoded["height"]) < SMALL_SIDE))
        shares = f"{share(small, len(decoded))}, have a side under {SMALL_SIDE}"
        rows.append(("image pixels", f"median {width} x {height}; {shares}"))
    return rows


def quantiles(values: np.ndarray, *per_cent: int) -> list[int]:
    """Compute quantiles: for each percentage, the lowest value that at least this share of the values do not exceed."""
    return np.percentile(values, per_cent, method="inverted_cdf").astype(np.int64).tolist()


def number(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def share(part: int, whole: int) -> str:
    return f"{number(part)} of {number(whole)}, {100 * part / max(whole, 1):.1f} %"


def shortened(text: str) -> str:
    """Shorten a text to one line, without control characters that a terminal would interpret."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
