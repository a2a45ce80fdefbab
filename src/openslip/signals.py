"""Handles signals that ask a run to stop; imports nothing slow, so that it can be installed before other imports."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from openslip import slurm
from openslip.progress import close, on_terminal
from openslip.terminal import notice

EXIT_CODE = 143
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
ECHO = 1.0  # seconds in which a repeated signal is ignored: a launcher forwards what the process group already received
MAIN_THREAD = 5.0  # seconds for the main thread to return to Python and exit in order
REQUEUE = 2 * slurm.ANSWER + 30.0  # the same while it asks SLURM to requeue the job


class Preempted(SystemExit):
    """Raised when all ranks have agreed to stop; not an Exception, so that no `except Exception` catches it."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


_first: signal.Signals | None = None
_seen: signal.Signals | None = None  # set even while the main thread is too busy to run its handler
_deferred = False
_stopped = threading.Event()  # set-up has been stopped, and SLURM has answered
_waiting = False


def catch() -> None:
    """Install the handlers: the first signal ends set-up at once; after `defer` it is noted for the next step boundary.

    A second signal ends the process immediately.
    """
    # Python runs handlers only in the main thread, which may be blocked in a collective for a long time, so another
    # thread watches the wake-up descriptor.
    written_to, write_to = os.pipe()
    os.set_blocking(write_to, False)
    signal.set_wakeup_fd(write_to, warn_on_full_buffer=False)
    # In forked children it is removed, so that their signals do not count as this process's.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_watch, args=(written_to,), name="signals", daemon=True).start()
    atexit.register(_keep_exit_code)
    for number in stopping():
        signal.signal(number, _note)


def stopping() -> list[signal.Signals]:
    """Return the signals that ask this process to stop; SIGHUP is excluded if it is ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not ignored]


def defer() -> None:
    """End set-up: from now on a signal is only noted, and the caller checks `received` at step boundaries."""
    global _deferred
    _deferred = True


def received() -> signal.Signals | None:
    """Return the signal that asked this process to stop, or None."""
    return _first


def seen() -> signal.Signals | None:
    """Return the first signal that arrived, even if the main thread has not yet returned to Python to handle it."""
    return _seen


@contextmanager
def waiting() -> Iterator[None]:
    """Let the first signal interrupt this context by raising `Preempted`.

    Raises:
        Preempted: a signal arrived; raised in this process only, so the caller must agree with the other ranks.
    """
    global _waiting
    _waiting = True
    try:
        if _first is not None:
            raise Preempted
        yield
    finally:
        _waiting = False


def stop_after(seconds: float) -> None:
    """Ask this process to stop after `seconds`, as a signal does; `received` then returns SIGALRM."""
    signal.signal(signal.SIGALRM, _note)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def ignore(worker: int) -> None:
    """Ignore signals in data-loading worker number `worker`, which only the process that started it may end."""
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    # SIGTERM is blocked, not ignored, because the main process ends its workers by SIGTERM and waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()  # under forkserver `os.getppid` gives another process
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


def _note(number: int, frame: FrameType | None) -> None:
    global _first
    if _first is None:
        _first = signal.Signals(number)
        if not _deferred:
            _stop_set_up(_first)
            sys.exit(EXIT_CODE)
        if _waiting:
            raise Preempted


def _keep_exit_code() -> None:
    """Exit with our exit code, because Hydra and others turn a SystemExit raised inside them into their own error."""
    if _first is not None and not _deferred:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODE)


def _watch(written_to: int) -> None:
    global _seen
    _seen = first = _next(written_to)
    since = time.monotonic()
    backstop = threading.Timer(MAIN_THREAD, _end_set_up, [first])
    backstop.daemon = True
    backstop.start()
    while True:
        _next(written_to)
        if time.monotonic() - since >= ECHO:
            os.write(2, b"\nsecond signal: exiting at once\n")
            os._exit(EXIT_CODE)


def _next(written_to: int) -> signal.Signals:
    """Wait for the next signal that asks to stop; other signals are left to libraries."""
    while (number := os.read(written_to, 1)[0]) not in STOPPING:
        pass
    return signal.Signals(number)


def _end_set_up(received: signal.Signals) -> None:
    """End set-up if the main thread has not handled the signal, or is stuck at exit, e.g. in download threads."""
    global _first
    if not _deferred:
        close()
        if _first is None:
            _first = received
            _stop_set_up(received)
        elif not _stopped.is_set():  # the main thread still asks SLURM to requeue the job
            _stopped.wait(REQUEUE)
            time.sleep(MAIN_THREAD)
        os._exit(EXIT_CODE)


def _stop_set_up(received: signal.Signals) -> None:
    if not on_terminal():  # below the ^C of a terminal; the line at its bottom is drawn over it
        sys.stderr.write("\n")
    notice(f"stopped by {received.name} during set-up; no step was made")
    slurm.requeue_alone(received)
    _stopped.set()
