"""Atomic, durable writes: a file is complete or absent, even if the process is killed or the machine crashes."""

import glob
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from openslip.errors import CheckpointError, UserError
from openslip.terminal import notice

WRITER = "checkpoint writer"  # name of the threads that write durably in the background


@contextmanager
def durable(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` when all of it is on the disk.

    It lies in the same folder, because TMPDIR may be another file system, from which a move is not atomic.
    """
    sweep(path.parent, glob.escape(path.name))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:  # "x" does not follow a link of this name, which anybody may have created
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


def unwritten(path: Path, error: OSError) -> str:
    """Describe why a file could not be written, and how much space is free."""
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
    """Turn an OSError in this context into an error that names the file, the free space and what to do.

    Args:
        path: file that is written in this context, and without which the caller cannot continue.
        refusal: type of the error to raise; the default is for a run's own files.
        advice: what to do when there is enough space again.
    """
    try:
        yield
    except OSError as error:
        raise refusal(f"{unwritten(path, error)}: make room or repair the file system; {advice}") from error


@contextmanager
def optional(path: Path) -> Iterator[None]:
    """Print a warning instead of an OSError in this context, for a file that the caller can do without."""
    try:
        yield
    except OSError as error:
        notice(f"WARNING: {unwritten(path, error)}; nothing else needs it")


def refuse_unwritable(path: Path, *, refusal: type[UserError] = UserError, advice: str) -> None:
    """Check, before hours of work, that a file can be written; an existing file is not changed.

    Args:
        path: file to be written later.
        refusal: type of the error to raise if it cannot be written.
        advice: what to do about it, for the error's message.
    """
    trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "it is no regular file")
        trial.unlink(missing_ok=True)  # left by a killed process of this id
        # "x" does not follow a link, as in `durable`. If the file exists, another process tries the same.
        with suppress(FileExistsError), trial.open("xb") as file:
            try:
                file.write(b"\n")
                file.flush()
            finally:
                trial.unlink(missing_ok=True)
    except OSError as error:
        raise refusal(f"{unwritten(path, error)}: {advice}") from error


def finish_writes() -> None:
    """Wait for writer threads; call it before ending the process from a thread other than the main one."""
    for thread in threading.enumerate():
        if thread.name == WRITER:
            thread.join()


class Hashing:
    """A file wrapper that computes the size and SHA-256 of the written bytes."""

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
    """Synchronise a folder with the disk, so that renames in it survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, name: str = "*") -> None:
    """Remove temporary files left by processes that were killed while writing."""
    for orphan in folder.glob(f".{name}.*.tmp"):
        orphan.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether this machine runs another process of this id; False for the id of this process itself."""
    if process == os.getpid():  # a file with this id was left by an earlier process
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
