"""Find shards that other indexes in the same folder cover, so that an unchanged shard is scanned only once."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from openslip.data.index.journal import JOURNAL, Entry, read_journal
from openslip.data.index.scan import LABEL, ROW, ShardSamples


class Known(NamedTuple):
    """Location of a shard's data in another index."""

    folder: Path
    entry: Entry
    row: int  # number of its first row
    key: int  # offset of its keys in bytes


def known_shards(home: Path) -> dict[str, Known]:
    """Find all shards in the indexes of a folder, complete or partial, by stamp."""
    known = {}
    for journal in home.glob(f"*/{JOURNAL}"):
        row = key = 0
        try:
            entries = read_journal(journal.parent)
        except OSError:  # another process has removed it, or it is not readable
            continue
        for entry in entries:
            known[entry.stamp] = Known(journal.parent, entry, row, key)
            row += entry.counts["samples"]
            key += entry.key_bytes
    return known


def take_over(known: Known) -> ShardSamples | None:
    """Read a shard's samples from another index; None if they are damaged, as after a power failure."""
    folder, entry, row, key = known
    count = entry.counts["samples"]
    try:
        rows = np.fromfile(folder / "rows", ROW, count, offset=row * ROW.itemsize)
        keys = np.fromfile(folder / "keys", np.uint8, entry.key_bytes, offset=key).tobytes()
        labels = np.full(count, -1, LABEL)  # without a file, no sample has a label
        if (folder / "labels").exists():
            labels = np.fromfile(folder / "labels", LABEL, count, offset=row * LABEL.itemsize)
    except OSError:
        return None
    samples = ShardSamples(entry.size, rows, labels, keys, entry.captions, entry.problems, entry.content)
    return samples if samples.digest == entry.digest else None
