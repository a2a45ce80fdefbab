"""The files of a shard cache: the user's own, opened without following links, with a checksum beside each."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openslip.durable import write_text
from openslip.errors import UserError
from openslip.locks import locked


def make_own(folder: Path) -> None:
    """Make the folder if need be.

    Raises:
        UserError: it belongs to somebody else, or anybody may write to it; links planted there could lead anywhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():
        reason = f"belongs to user {status.st_uid}, not to you ({os.geteuid()})"
    elif status.st_mode & stat.S_IWOTH:
        reason = "may be written to by anybody"
    else:
        return
    raise UserError(
        f"shard cache {folder} {reason}: name a folder of your own with shard_cache.folder=, or correct its rights "
        "(chmod o-w)"
    )


def open_own(path: Path, flags: int) -> int:
    """Open a regular file of the user's own; links are not followed, and no hard link of another file is written to.

    Raises:
        UserError: something else has the name.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        status = os.fstat(descriptor)
        has_one_name = status.st_nlink <= 1 or not flags & os.O_CREAT  # of a file that will be written
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and has_one_name:
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise
    raise UserError(
        f"shard cache: {path} is a link, a file of somebody else or no regular file, and is left alone: "
        "remove it, or name another shard_cache.folder"
    )


def content_digest(descriptor: int) -> str:
    """Sha256 of all of an open file."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def note(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def read_note(path: Path, mtime_ns: int) -> str | None:
    """The sha256 that was noted of a file, unless the file has changed since."""
    try:
        checksum, _, written = note(path).read_text(encoding="ascii").partition(" ")
    except (OSError, ValueError):
        return None
    return checksum if written == f"{mtime_ns}\n" else None


def write_note(path: Path, checksum: str, descriptor: int) -> None:
    write_text(note(path), f"{checksum} {os.fstat(descriptor).st_mtime_ns}\n")


@contextmanager
def must_lock(file: Path | int, *, wait: float | None = None, what: str = "") -> Iterator[None]:
    """A lock without which processes would write to the same file."""
    with locked(file, wait=wait, what=what) as held:
        if not held:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        yield


def is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def reserved(part: Path) -> int:
    """Bytes that a download in progress takes; what a dead process left is deleted and takes none."""
    try:
        descriptor = open_own(part, os.O_RDWR)
    except (FileNotFoundError, UserError):
        return 0
    try:
        with must_lock(descriptor, wait=0.0):
            if is_at(descriptor, part):
                part.unlink()
        return 0
    except BlockingIOError:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
