"""Where every sample of a dataset lies: one table on disk that all processes map; `build` writes it.

Beside the shards (or, where that cannot be written, in the cache folder) lies `.openslip-index/`, with a folder per
list of shards: `shards.jsonl`, a line per shard; `rows`, `keys` and, if there are any, `labels`; `caption` and `label`:
places of the samples that have one, unless all do; `checksums` of these files. A folder gets its name when it is
complete.
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
    path: Path | None  # None for a remote shard, which has to be fetched
    address: str  # of a remote shard
    version: str  # of a remote shard, as its server states it; a file is identified by its size and time


class State(NamedTuple):
    """What the system says of a shard's file; the last two also change where the content stays the same."""

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int


REMOTE = State(-1, 0, 0, 0)  # its server tells its version instead


def state_of(status: os.stat_result) -> State:
    return State(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


class Index:
    """The samples that meet a requirement, in shard order. Memory-mapped: the processes of a node share it.

    Attributes:
        parts: number of these samples in each shard.
        problems: of the samples and members that were skipped or repaired.
        states: of each file when the index was opened.
        scans: sha256 of rows, labels and keys, of captions, and of all of a remote shard, for each shard.
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
        self.ends = np.cumsum([entry.counts["samples"] for entry in entries]).tolist()  # of the shards, in `rows`
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
        """A sample's shard and its place in `rows`."""
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
        return Index, (
            self.folder,
            self.shards,
            self.states,
            self.require,
        )  # mapped anew where it is unpickled, not copied


def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    empty = path.stat().st_size == 0  # which cannot be mapped
    return np.empty(0, dtype) if empty else np.memmap(path, dtype, mode="r").view(np.ndarray)
