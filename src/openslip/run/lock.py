"""One process at a time trains a run: two would both write its figures and sweep each other's unfinished files."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from openslip.errors import UserError

PATIENCE = 5.0  # seconds: the process before may still be on its way out
AFTER_REQUEUE = 120.0  # seconds: a file server takes up to 90 to see that a node is gone
_held: list[IO[str]] = []  # until this process ends, however it does


def lock(folder: Path) -> None:
    """Holds `.lock` in a run's folder; nothing is held where the file system knows no locks.

    Not `flock`, which processes that load data would inherit, and hold when this one was killed.

    Raises:
        UserError: another process has it.
        OSError: the folder cannot be written.
    """
    file = (folder / ".lock").open("a+")
    requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    deadline = time.monotonic() + (AFTER_REQUEUE if requeued else PATIENCE)
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > deadline:
                file.seek(0)
                raise UserError(
                    f"{folder} is being trained by process {file.read().strip() or 'unknown'}: wait for it or stop it, "
                    f"or give another name=; if that machine has crashed, delete {folder / '.lock'}"
                ) from error
            time.sleep(0.1)
        except OSError:
            break
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held.append(file)
