"""Ends a process that is stuck: each phase of a run has a limit, after which all stacks are printed."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from openslip.distributed import rank

EXIT_CODE = 1

_limits: dict[str, float] = {}
_phase = ""
_deadline = float("inf")


def start(limits: dict[str, float]) -> None:
    """Watches this process from now on, in the phase `setup`.

    Args:
        limits: seconds of `setup`, `step`, `evaluation` and `checkpoint`.
    """
    _limits.update(limits)
    enter("setup")
    threading.Thread(target=_watch, name="watchdog", daemon=True).start()


def enter(phase: str) -> None:
    """The phase begins, and its time; nothing happens where no watchdog was started."""
    global _phase, _deadline
    if _limits:
        _phase, _deadline = phase, time.monotonic() + _limits[phase]


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A phase inside another, whose time begins anew afterwards."""
    outer = _phase
    enter(name)
    try:
        yield
    finally:
        if outer:
            enter(outer)


def _watch() -> None:
    while time.monotonic() < _deadline:
        time.sleep(min(1.0, min(_limits.values()) / 4))
    limit = f"watchdog.{_phase}={_limits[_phase]:g} seconds"
    sys.stderr.write(
        f"\nerror: rank {rank()} is stuck: its {_phase} takes longer than {limit}; where its threads are:\n"
    )
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)
    os._exit(EXIT_CODE)
