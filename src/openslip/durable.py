"""Atomic, durable writes: a file is complete or absent, whatever happens to the process or the machine."""

import glob
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from openslip.errors import CheckpointError, UserError
from openslip.terminal import notice

WRITER = "checkpoint writer"  # name of threads that write durably while the process does something else


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
    """Write one compressed `.npz` durably, for the report; where it cannot be written a line says so."""
    with optional(path):
        path.parent.mkdir(exist_ok=True)
        with durable(path) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)


def unwritten(path: Path, error: OSError) -> str:
    """That a file could not be written, why, and how much room there is."""
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(folder).free
    return f"{path} could not be written ({error.strerror or error}; {free / 1e6:,.1f} MB free)"


@contextmanager
def needed(
    path: Path,
    *,
    refusal: type[UserError] = CheckpointError,
    advice: str = "the same command resumes the run from its last checkpoint",
) -> Iterator[None]:
    """Name the file, the free space and what to do where a file that is needed cannot be written.

    Args:
        path: of the file.
        refusal: the error to raise; the default is that of a run's own files.
        advice: what helps once there is room.
    """
    try:
        yield
    except OSError as error:
        raise refusal(f"{unwritten(path, error)}: make room or mend the file system; {advice}") from error


@contextmanager
def optional(path: Path) -> Iterator[None]:
    """Go on with a line where a file cannot be written that only shows what is kept elsewhere."""
    try:
        yield
    except OSError as error:
        notice(f"WARNING: {unwritten(path, error)}; nothing else needs it", below=True)


def refuse_unwritable(path: Path, *, refusal: type[UserError] = UserError, advice: str) -> None:
    """Find out before hours of work whether a file can be written; what lies there is left as it is."""
    trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "it is no regular file")
        try:
            trial.write_bytes(b"\n")
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise refusal(f"{unwritten(path, error)}: {advice}") from error


def finish_writes() -> None:
    """Wait for writer threads: call it before ending the process from a thread that is not the main one."""
    for thread in threading.enumerate():
        if thread.name == WRITER:
            thread.join()


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
