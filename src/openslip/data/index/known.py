"""What the indexes of a home know of shards, so that an unchanged shard is scanned once."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from openslip.data.index.journal import JOURNAL, Entry, read_journal
from openslip.data.index.scan import LABEL, ROW, ShardSamples


class Known(NamedTuple):
    """Where another index holds what a scan of a shard gave."""

    folder: Path
    entry: Entry
    row: int  # the first of its rows
    key: int  # the first byte of its keys


def known_shards(home: Path) -> dict[str, Known]:
    """All shards in the indexes of a home, complete or not, by stamp."""
    known = {}
    for journal in home.glob(f"*/{JOURNAL}"):
        row = key = 0
        try:
            entries = read_journal(journal.parent)
        except OSError:  # another process has tidied up, or it is not ours to read
            continue
        for entry in entries:
            known[entry.stamp] = Known(journal.parent, entry, row, key)
            row += entry.counts["samples"]
            key += entry.key_bytes
    return known


def take_over(known: Known) -> ShardSamples | None:
    """What an index holds of a shard, or None where it is damaged, as after a power failure."""
    folder, entry, row, key = known
    count = entry.counts["samples"]
    try:
        rows = np.fromfile(folder / "rows", ROW, count, offset=row * ROW.itemsize)
        keys = np.fromfile(folder / "keys", np.uint8, entry.key_bytes, offset=key).tobytes()
        labels = np.full(count, -1, LABEL)  # no file: none of them has one
        if (folder / "labels").exists():
            labels = np.fromfile(folder / "labels", LABEL, count, offset=row * LABEL.itemsize)
    except OSError:
        return None
    samples = ShardSamples(entry.size, rows, labels, keys, entry.captions, entry.problems, entry.content)
    return samples if samples.digest == entry.digest else None
