"""Sums over the shards of a conversion."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from openslip.data.convert.shard import Entry


@dataclass
class Totals:
    """How many shards, samples and bytes there are, and what was left out by reason."""

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Totals":
        totals = cls()
        for entry in entries:
            totals.add(entry)
        return totals

    def add(self, entry: Entry) -> None:
        self.shards += 1
        self.samples += entry.samples
        self.bytes += entry.bytes
        self.left_out.update(entry.left_out)

    def reasons(self) -> str:
        """`800 x missing picture, 12 x no caption`, the most frequent first."""
        return ", ".join(f"{count:,} x {reason}" for reason, count in self.left_out.most_common())
