"""File locks by `flock`, which this file alone calls; the system releases the lock of a process that dies."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openslip.errors import UserError
from openslip.terminal import waiting

POLL = 0.1  # seconds between attempts

_held: set[int] = set()


@contextmanager
def locked(file: Path | int, *, wait: float | None = None, what: str = "") -> Iterator[bool]:
    """Hold a file's lock, exclusive among threads and processes; yield False if the file system has no locks.

    Args:
        file: file to lock, created if it does not exist and otherwise unchanged; or a descriptor open for writing.
        wait: seconds to wait for the lock; 0.0 for a single attempt, None for no limit.
        what: what the lock protects, for the line printed while waiting.

    Raises:
        BlockingIOError: another process or thread still holds the lock.
        OSError: the file cannot be opened.
        UserError: the file is a symbolic link, which anybody could have pointed anywhere, or not a regular file.
    """
    deadline = None if wait is None else time.monotonic() + wait
    while True:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        with _holding(file, left, what or f"{file}") as (descriptor, held):
            # The holder before may have removed the file, and another process may hold the lock of a new one.
            if isinstance(file, int) or not held or _is_open_as(descriptor, file):
                yield held
                return


@contextmanager
def _holding(file: Path | int, wait: float | None, what: str) -> Iterator[tuple[int, bool]]:
    """Hold the lock of the file that is at a path now; yield its descriptor, and False if there are no locks."""
    descriptor = file if isinstance(file, int) else _open(file)
    _held.add(descriptor)  # before locking, because another thread may fork this process at any time
    try:
        yield descriptor, _acquire(descriptor, wait, what)
    finally:
        if descriptor in _held:  # not in a forked child, which has closed it
            _held.remove(descriptor)
            with suppress(OSError):  # raised if the file system has no locks
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child just forked may not have closed its copy yet
            if not isinstance(file, int):
                os.close(descriptor)


def _is_open_as(descriptor: int, file: Path) -> bool:
    """Whether a path still names the file that a descriptor has open."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock of an existing file, which this changes in no way."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system has no locks
        return False
    finally:
        os.close(descriptor)
    return False


def _open(file: Path) -> int:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise UserError(f"lock {file} is a link, which is not followed: remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"lock {file} is no regular file: remove it")
    return descriptor


def _acquire(descriptor: int, wait: float | None, what: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        if wait == 0:
            raise
    except OSError:
        return False
    with waiting(lambda: f"{what}, which another process has locked"):
        return _wait(descriptor, wait)


def _wait(descriptor: int, wait: float | None) -> bool:
    if wait is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL)


def _close_in_child() -> None:
    """Close the descriptors that a forked child inherits, because its copies would hold the locks while it lives."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
