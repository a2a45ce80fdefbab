"""Files of a cache: owned by the user, opened without following links, each with its checksum beside it."""

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


def cache_folder(name: str) -> Path | None:
    """Folder of the user for files that can be recreated; None if the user has no home directory.

    It is in `OPENSLIP_CACHE`, or else in `XDG_CACHE_HOME/openslip`, or else in `~/.cache/openslip`.
    """
    try:
        if own := os.environ.get("OPENSLIP_CACHE"):
            return Path(own).expanduser() / name
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "openslip" / name
    except RuntimeError:  # in a container without HOME whose /etc/passwd has no entry for the user
        return None


def make_own(folder: Path, cache: str = "shard cache", setting: str = "shard_cache.folder") -> None:
    """Create the cache folder if needed, and refuse one that other users could write to.

    Args:
        folder: the cache folder.
        cache: what is cached, for the error message.
        setting: the setting that names another folder, for the error message.

    Raises:
        UserError: another user owns the folder, or anybody may write to it; links planted there could lead anywhere.
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
        f"{cache} {folder} {reason}: name a folder of your own with {setting}=, or correct its rights (chmod o-w)"
    )


def open_own(path: Path, flags: int, cache: str = "shard cache", setting: str = "shard_cache.folder") -> int:
    """Open a regular file that the user owns, without following links or writing to a file with several hard links.

    Args:
        path: the file.
        flags: flags of `os.open`.
        cache: what is cached, for the error message.
        setting: the setting that names another folder, for the error message.

    Raises:
        UserError: the path is a link, a file of another user, or not a regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        status = os.fstat(descriptor)
        has_one_name = status.st_nlink <= 1 or not flags & os.O_CREAT  # checked only for files to write
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and has_one_name:
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise
    raise UserError(
        f"{cache}: {path} is a link, a file of somebody else or no regular file, and is left alone: "
        f"remove it, or name another {setting}"
    )


def content_digest(descriptor: int) -> str:
    """Sha256 of the whole content of an open file."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


def note(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def read_note(path: Path, mtime_ns: int) -> str | None:
    """Read the recorded sha256 of a file; None if there is none or the file has changed since."""
    try:
        checksum, _, written = note(path).read_text(encoding="ascii").partition(" ")
    except (OSError, ValueError):
        return None
    return checksum if written == f"{mtime_ns}\n" else None


def write_note(path: Path, checksum: str, descriptor: int) -> None:
    write_text(note(path), f"{checksum} {os.fstat(descriptor).st_mtime_ns}\n")


@contextmanager
def must_lock(file: Path | int, *, wait: float | None = None, what: str = "") -> Iterator[None]:
    """Hold the lock of a file; raises OSError on a file system without locks, where processes would write at once."""
    with locked(file, wait=wait, what=what) as held:
        if not held:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        yield


def is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def reserved(part: Path) -> int:
    """Bytes that a download in progress has reserved; a file left by a dead process is deleted and counts 0."""
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
