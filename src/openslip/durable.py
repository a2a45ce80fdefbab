"""Atomic, durable writes: a file is complete or absent, whatever happens to the process or the machine."""

import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np


@contextmanager
def durable(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` once all of it is on the disk.

    The temporary file lies in the same folder: TMPDIR may be another file system, where a move is a copy.
    """
    sweep(path.parent, glob.escape(path.name))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:  # a link of this name, which anybody may have made, is not followed
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file durably."""
    with durable(path) as file:
        file.write(text.encode())


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one compressed `.npz` durably."""
    with durable(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


class Hashing:
    """A file wrapper that computes the size and sha256 of what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def point(link: Path, target: str) -> None:
    """Point the symbolic link `link` at `target`, a name in the same folder, atomically."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    sync_folder(link.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that renames in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, name: str = "*") -> None:
    """Remove temporary files of processes that were killed while they wrote."""
    for orphan in folder.glob(f".{name}.*.tmp"):
        orphan.unlink(missing_ok=True)
