"""The lock of a run's folder: two processes would both log, and delete each other's files."""

import atexit
import os
import socket
from contextlib import ExitStack
from pathlib import Path

from openslip.errors import UserError
from openslip.locks import locked
from openslip.slurm import was_requeued

PATIENCE = 5.0  # seconds to wait for the lock: the previous process may not have exited yet
AFTER_REQUEUE = 120.0  # the same after a requeue: a file server takes up to 90 s to notice that a node is gone
LOCK = ".lock"

_locks = ExitStack()  # held until this process ends, in whatever way it ends
atexit.register(_locks.close)
_locked: set[tuple[int, Path]] = set()  # pairs of process id and folder


def hold(folder: Path) -> None:
    """Lock a run's folder until this process ends.

    Raises:
        UserError: another process holds the lock.
    """
    if is_held(folder):
        return
    file = folder / LOCK
    try:
        while not is_held(folder):
            try:
                _locks.enter_context(locked(file, wait=AFTER_REQUEUE if was_requeued() else PATIENCE))
                _locked.add((os.getpid(), folder.resolve()))
            except FileNotFoundError:  # a failed start, which held the lock, has removed the folder
                folder.mkdir(parents=True, exist_ok=True)
    except BlockingIOError as error:
        raise UserError(
            f"{folder} is being trained by process {file.read_text().strip() or 'unknown'}: wait for it or stop it, "
            f"or give another name=; if that machine has crashed, delete {file}"
        ) from error
    file.write_text(f"{os.getpid()} on {socket.gethostname()}\n")


def is_held(folder: Path) -> bool:
    """Whether this process holds the lock of a run's folder."""
    return (os.getpid(), folder.resolve()) in _locked


def remove(folder: Path) -> None:
    """Remove the lock of a folder whose run has not begun, so that another start creates its own."""
    (folder / LOCK).unlink(missing_ok=True)
    _locked.discard((os.getpid(), folder.resolve()))
