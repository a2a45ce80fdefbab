"""Signals that ask a run to stop; imports nothing slow, so that it is in force before anything else is imported."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType

from openslip import slurm

EXIT_CODE = 143
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
ECHO = 1.0  # seconds: a launcher passes on what the whole process group has already got


class Preempted(SystemExit):
    """Raised where all ranks have agreed to stop; not an Exception, so that nothing swallows it on its way."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


_first: tuple[signal.Signals, float] | None = None
_deferred = False


def catch() -> None:
    """From now on the first signal stops a set-up at once, or is noted for the next step boundary after `defer`.

    A second one ends the process where it stands.
    """
    for number in STOPPING:
        signal.signal(number, _note)


def defer() -> None:
    """Set-up is over: whoever reaches a step boundary looks at `received`."""
    global _deferred
    _deferred = True


def received() -> signal.Signals | None:
    """The signal that asked this process to stop."""
    return _first[0] if _first else None


def ignore(worker: int) -> None:
    """For processes that decode: a scheduler signals them as well, but only who started them may end them."""
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    # Ignored, it would leave the main process waiting for ever for workers that it has told to end by SIGTERM.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()  # under forkserver another one than `os.getppid`
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


def _note(number: int, frame: FrameType | None) -> None:
    global _first
    now = time.monotonic()
    if _first is not None:
        if now - _first[1] < ECHO:
            return
        os.write(2, b"\na second signal: ends at once\n")
        os._exit(EXIT_CODE)
    _first = signal.Signals(number), now
    if not _deferred:
        sys.stderr.write(f"\nstopped by {_first[0].name} during set-up: no step was made\n")
        slurm.requeue(_first[0])
        sys.exit(EXIT_CODE)
