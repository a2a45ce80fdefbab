"""Signals that ask a run to stop; imports nothing slow, so that it is in force before anything else is imported."""

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

EXIT_CODE = 143
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
ECHO = 1.0  # seconds: a launcher passes on what the whole process group has already got
MAIN_THREAD = 5.0  # seconds for it to come back to Python and leave in order


class Preempted(SystemExit):
    """Raised where all ranks have agreed to stop; not an Exception, so that nothing swallows it on its way."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


_first: signal.Signals | None = None
_seen: signal.Signals | None = None  # also while the main thread cannot note it
_deferred = False
_waiting = False


def catch() -> None:
    """Handle signals: the first stops a set-up at once, or after `defer` is noted for the next step boundary.

    A second one ends the process where it stands.
    """
    # Python calls handlers in the main thread alone, which may wait in a collective for as long as others like.
    written_to, write_to = os.pipe()
    os.set_blocking(write_to, False)
    signal.set_wakeup_fd(write_to, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are not this process's
    threading.Thread(target=_watch, args=(written_to,), name="signals", daemon=True).start()
    atexit.register(_keep_exit_code)
    for number in stopping():
        signal.signal(number, _note)


def stopping() -> list[signal.Signals]:
    """The signals that ask this process to stop: not SIGHUP where it was started to outlive its terminal (nohup)."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not ignored]


def defer() -> None:
    """Mark set-up as over: from now on `received` is checked at step boundaries."""
    global _deferred
    _deferred = True


def received() -> signal.Signals | None:
    """The signal that asked this process to stop, or None."""
    return _first


def seen() -> signal.Signals | None:
    """The first signal that came to this process, known before its main thread comes back to Python and notes it."""
    return _seen


@contextmanager
def waiting() -> Iterator[None]:
    """Let the first signal end what a block waits for: it raises `Preempted` there.

    Raises:
        Preempted: in this process alone; what other ranks do is for the caller to agree with them.
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
    """Ask this process to stop in so many seconds, as a signal does; `received` is then SIGALRM."""
    signal.signal(signal.SIGALRM, _note)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def ignore(worker: int) -> None:
    """Ignore signals in a data-loading worker, which only the process that started it may end."""
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    # Ignoring it would leave the main process waiting forever for workers that it has told to end by SIGTERM.
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
    if _first is None:
        _first = signal.Signals(number)
        if not _deferred:
            _stop_set_up(_first)
            sys.exit(EXIT_CODE)
        if _waiting:
            raise Preempted


def _keep_exit_code() -> None:
    """Leave with our exit code although Hydra, among others, turns what is raised inside it into its own error."""
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
    """Wait for a signal that asks to stop; libraries handle others."""
    while (number := os.read(written_to, 1)[0]) not in STOPPING:
        pass
    return signal.Signals(number)


def _end_set_up(received: signal.Signals) -> None:
    """End a set-up whose main thread has not noted the signal, or waits on its way out for threads of a download."""
    global _first
    if not _deferred:
        if _first is None:
            _first = received
            _stop_set_up(received)
        os._exit(EXIT_CODE)


def _stop_set_up(received: signal.Signals) -> None:
    sys.stderr.write(f"\nstopped by {received.name} during set-up; no step was made\n")
    sys.stderr.flush()
    slurm.requeue_alone(received)
