"""The figures as lines of text."""

from dataclasses import dataclass

from openslip.data.check.figures import SMALL_SIDE, CaptionFigures, DuplicateFigures, PictureFigures
from openslip.data.check.unreadable import Unreadable

MAX_TEXT = 70
LABEL_WIDTH = 22


@dataclass(frozen=True)
class Report:
    """What `check` found. Of the pictures, only `decode` tells which cannot be decoded.

    Attributes:
        samples: in the collection.
        looked_at: of which all figures but `samples` and `left_out` are.
        expected_samples: of the published collection.
        left_out: the source's problems.
        captions: None where there are none.
        duplicates: of pictures.
        pictures: None where none could be read.
        decoded: whether the pictures were decoded.
        unreadable: samples that could not be read or, if `decoded`, not be decoded.
    """

    samples: int
    looked_at: int
    expected_samples: int | None
    left_out: tuple[str, ...]
    captions: CaptionFigures | None
    duplicates: DuplicateFigures
    pictures: PictureFigures | None
    decoded: bool
    unreadable: Unreadable

    def lines(self) -> list[str]:
        """To print; a label and its figures each."""
        rows = [("samples", number(self.samples))]
        if self.expected_samples is not None:
            whole = 100 * self.samples // self.expected_samples  # rounded down: 100 % is all of them
            rows = [("samples", f"{number(self.samples)} of {number(self.expected_samples)} samples, {whole} %")]
        rows += [("left out", line) for line in self.left_out]
        figures = [*self.caption_rows(), *self.picture_rows()]
        if self.looked_at < self.samples:
            note = f"  (of {number(self.looked_at)} evenly spaced samples)"
            figures = [(label, text + note) for label, text in figures]
        return [f"{label:{LABEL_WIDTH}}{text}".rstrip() for label, text in rows + figures]

    def caption_rows(self) -> list[tuple[str, str]]:
        found = self.captions
        if found is None:
            return [("captions", "none")]
        per_sample = f"{found.least_per_sample} to {found.most_per_sample}, mean {found.mean_per_sample:.2f}"
        if found.least_per_sample == found.most_per_sample:
            per_sample = str(found.least_per_sample)
        if found.without:
            per_sample += f"; {number(found.without)} samples have none"
        return [
            ("captions per sample", per_sample),
            (
                "tokens per caption",
                f"mean {found.mean_length:.1f}, median {found.median_length}, p90 {found.p90_length}, "
                f"p99 {found.p99_length}, longest {number(found.longest)}; start and end included",
            ),
            (
                "cut off",
                f"{share(found.too_long, found.count)}: captions of more than {found.context_length} tokens",
            ),
            (
                "distinct captions",
                f"{number(found.distinct)} of {number(found.count)}, {per_cent(found.distinct, found.count)}",
            ),
            *[("  most frequent", f"{number(count)} x {shortened(text)}") for text, count in found.frequent],
        ]

    def picture_rows(self) -> list[tuple[str, str]]:
        duplicates, found = self.duplicates, self.pictures
        rows = [
            ("duplicate pictures", f"{share(duplicates.count, duplicates.among)}: the same bytes as an earlier one"),
            *[("  the same", f"{one} = {other}") for one, other in duplicates.pairs],
        ]
        if found is not None:
            median, p99, total = map(size, (found.median_bytes, found.p99_bytes, found.total_bytes))
            rows.append(("picture bytes", f"median {median}, p99 {p99}, all {total}"))
        if found is not None and found.decoded:
            rows.append(
                (
                    "picture pixels",
                    f"median {found.median_width} x {found.median_height}; {share(found.small, found.decoded)}, "
                    f"have a side under {SMALL_SIDE}",
                )
            )
        count = self.unreadable.reasons.total()
        if count == 0 and not self.decoded:
            return [*rows, ("unreadable", "not known: the pictures were not decoded")]
        rows.append(("unreadable", share(count, self.looked_at)))
        rows += [("  reason", f"{number(times)} x {reason}") for reason, times in self.unreadable.reasons.most_common()]
        return rows + [("  first", f"{key}: {reason}") for key, reason in self.unreadable.first]


def number(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def per_cent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0.0 %"


def share(part: int, whole: int) -> str:
    return f"{number(part)} of {number(whole)}, {per_cent(part, whole)}"


def size(num_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1000:.1f} kB"


def shortened(text: str) -> str:
    """On one line, without what a terminal would obey."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
