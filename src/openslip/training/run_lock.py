"""One process at a time trains a run: two would both write its figures and sweep each other's unfinished files."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from openslip.errors import UserError

PATIENCE = 5.0  # seconds: the process before may still be on its way out
_held: list[IO[str]] = []  # until this process ends, however it does


def lock(folder: Path) -> None:
    """Holds `.lock` in a run's folder; nothing is held where the file system knows no locks.

    Not `flock`, which processes that load data would inherit, and hold when this one was killed.

    Raises:
        UserError: another process has it.
        OSError: the folder cannot be written.
    """
    file = (folder / ".lock").open("a+")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > deadline:
                file.seek(0)
                raise UserError(
                    f"{folder} is being trained by process {file.read().strip() or 'unknown'}: wait for it or stop it, "
                    "or give another name="
                ) from error
            time.sleep(0.1)
        except OSError:
            break
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held.append(file)
