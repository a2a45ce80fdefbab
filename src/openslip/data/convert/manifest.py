"""Manifest of a conversion, OUT/manifest.json: its settings and complete shards; only the parent process writes it."""

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openslip.durable import needed, write_text
from openslip.errors import UserError

FORMAT = 2
RESUMES = "the same command resumes"


@dataclass(frozen=True)
class Entry:
    """Entry of a complete shard in the manifest."""

    name: str
    samples: int
    bytes: int
    sha256: str  # digest of the file
    records: str  # sha256 of the records that it was made from, to detect that the dataset has changed
    left_out: dict[str, int]  # number of records that were left out, by reason


class Totals:
    """Totals over shards: number of shards, samples and bytes, and of records left out by reason."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.shards = self.samples = self.bytes = 0
        self.left_out = Counter[str]()
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        self.shards += 1
        self.samples += entry.samples
        self.bytes += entry.bytes
        self.left_out.update(entry.left_out)

    def reasons(self) -> str:
        """Describe why records were left out, as `800 x missing image, 12 x no caption`, the most frequent first."""
        return ", ".join(f"{count:,} x {reason}" for reason, count in self.left_out.most_common())

    def __str__(self) -> str:
        left_out = self.left_out.total()
        return f"in all {self.shards:,} shards, {self.samples:,} samples, {left_out:,} left out"


@dataclass
class Manifest:
    """Settings and complete shards of a conversion; the complete shards are always the first ones, in order."""

    made_of: dict[str, Any]  # layout, root and options, all of which affect the bytes of the shards
    shards: list[Entry] = field(default_factory=list)
    left_out_bytes: int = 0  # length of the part of left_out.jsonl that belongs to the complete shards
    is_complete: bool = False  # whether the whole dataset is converted

    def save(self, path: Path) -> None:
        totals = Totals(self.shards)
        content = {
            "format": FORMAT,
            **self.made_of,
            "is_complete": self.is_complete,
            "samples": totals.samples,
            "bytes": totals.bytes,
            "left_out": dict(sorted(totals.left_out.items())),
            "left_out_bytes": self.left_out_bytes,
            "shards": [asdict(entry) for entry in self.shards],
        }
        with needed(path, refusal=UserError, advice=RESUMES):
            write_text(path, json.dumps(content, indent=1))


def read(path: Path, keys: Collection[str]) -> Manifest:
    """Read a manifest; `keys` are the keys of its `made_of`."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        made_of = {key: content[key] for key in keys}
        return Manifest(made_of, [Entry(**entry) for entry in content["shards"]], content["left_out_bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no manifest of this version ({error!r}): convert into a new folder") from error
