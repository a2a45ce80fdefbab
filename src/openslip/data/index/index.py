"""Index of a dataset: a table of the location of every sample, on disk and memory-mapped; `build.py` writes it.

The indexes are in `.openslip-index/` beside the shards or, if that is not writable, in the cache folder. Each list of
shards has a folder there, which gets its final name when it is complete. It holds `shards.jsonl` (a line per shard),
`rows`, `keys`, `labels` (if there are any), `caption` and `label` (row numbers of the samples that have one, unless all
do), and `checksums` of these files.
"""

import hashlib
import os
from bisect import bisect_right
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from openslip.data.index.journal import read_journal
from openslip.data.index.scan import LABEL, REQUIREMENTS, ROW
from openslip.data.index.tar import Problems
from openslip.terminal import printable


class Shard(NamedTuple):
    """A tar file, on a local disk or remote."""

    name: str  # path, or address without credentials
    path: Path | None  # None for a remote shard, which must be fetched
    address: str  # address of a remote shard, else empty
    version: str  # version of a remote shard, as its server states it; a local file is identified by size and mtime


class State(NamedTuple):
    """File status of a shard; inode and ctime can also change while the content stays the same."""

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int


REMOTE = State(-1, 0, 0, 0)  # a remote shard is identified by its version instead


def state_of(status: os.stat_result) -> State:
    return State(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


class Index:
    """The samples that meet a requirement, in shard order; memory-mapped, so that the processes of a node share it.

    Attributes:
        parts: number of these samples in each shard.
        problems: samples and members that were skipped or repaired.
        states: file status of each shard when the index was opened.
        scans: three sha256 digests per shard: of rows, labels and keys; of captions; of the content, if it is remote.
        fingerprint: sha256 of shard names and sizes, rows, labels, keys and captions, and the requirement.
    """

    def __init__(self, folder: Path, shards: list[Shard], states: list[State], require: str | None) -> None:
        self.folder = folder
        self.shards = shards
        self.require = require
        entries = read_journal(folder)
        self.states = states
        self.scans = [(entry.digest, entry.captions, entry.content) for entry in entries]
        counted = require or "samples"
        self.parts: Int64[np.ndarray, " shards"] = np.array([entry.counts[counted] for entry in entries], np.int64)
        self.ends = np.cumsum([entry.counts["samples"] for entry in entries]).tolist()  # end of each shard in `rows`
        self.key_starts = np.cumsum([0, *(entry.key_bytes for entry in entries)]).tolist()
        self.rows = mapped(folder / "rows", ROW)
        self.labels = mapped(folder / "labels", LABEL) if (folder / "labels").exists() else None
        self.keys = mapped(folder / "keys", np.dtype(np.uint8))
        places = folder / str(require)
        self.places = mapped(places, np.dtype("<u4")) if places.exists() else None
        self.problems = Problems()
        ignored = {reason for other, reasons in REQUIREMENTS.items() if other != require for reason in reasons}
        digest = hashlib.sha256(str(require).encode())
        for shard, entry in zip(shards, entries, strict=True):
            digest.update(f"{Path(shard.name).name} {entry.size} {entry.digest} {entry.captions}\n".encode())
            for reason, count in entry.problems.counts.items():
                if reason not in ignored:
                    self.problems.add(reason, f"{shard.name}:{entry.problems.first[reason]}", count)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.rows) if self.places is None else len(self.places)

    def find(self, index: int) -> tuple[int, int]:
        """Find the shard of a sample, and its row number in `rows`."""
        place = index if self.places is None else int(self.places[index])
        return bisect_right(self.ends, place), place

    def label(self, place: int) -> int | None:
        label = -1 if self.labels is None else int(self.labels[place])
        return None if label < 0 else label

    def key(self, index: int) -> str:
        shard, place = self.find(index)
        is_first = place == (self.ends[shard - 1] if shard else 0)
        start = 0 if is_first else int(self.rows[place - 1]["key_end"])
        base = self.key_starts[shard]
        return printable(self.keys[base + start : base + int(self.rows[place]["key_end"])].tobytes().decode())

    def __reduce__(self) -> tuple[Any, ...]:
        # The process that unpickles the index maps the files again, instead of getting a copy.
        return Index, (self.folder, self.shards, self.states, self.require)


def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    empty = path.stat().st_size == 0  # an empty file cannot be mapped
    return np.empty(0, dtype) if empty else np.memmap(path, dtype, mode="r").view(np.ndarray)
