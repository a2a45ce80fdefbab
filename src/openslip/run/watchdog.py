"""Watchdog: ends a process that exceeds the time limit of its phase; also a clock that counts only steps."""

import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from openslip.distributed import rank
from openslip.progress import close
from openslip.run import ranks
from openslip.terminal import notice

EXIT_CODE = 1
LAST_WORDS = 2.0  # seconds: lets ranks that wait for the stuck one print their errors before a launcher ends them all

_limits: dict[str, float] = {}
_phase = ""
_deadline = float("inf")
_aside = 0.0  # seconds spent in nested phases


def start(limits: dict[str, float]) -> None:
    """Start watching this process, beginning with the phase `setup`.

    Args:
        limits: time limit in seconds of each phase: `setup`, `step`, `evaluation` and `checkpoint`.
    """
    _limits.update(limits)
    enter("setup")
    threading.Thread(target=_watch, name="watchdog", daemon=True).start()


def enter(phase: str) -> None:
    """Begin a phase and its time limit; do nothing if no watchdog was started."""
    global _phase, _deadline
    if _limits:
        _phase, _deadline = phase, time.monotonic() + _limits[phase]


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Enter a nested phase, during which the step clock is paused; afterwards the outer phase's limit restarts."""
    global _aside
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # pending kernels of a step count as time of the step
    outer, started = _phase, time.perf_counter()
    enter(name)
    try:
        yield
    finally:
        _aside += time.perf_counter() - started
        if outer:
            enter(outer)


def step_clock() -> float:
    """Return the seconds of a clock that is paused during evaluations, checkpoints and other nested phases."""
    return time.perf_counter() - _aside


def _watch() -> None:
    while time.monotonic() < _deadline:
        time.sleep(min(1.0, min(_limits.values()) / 4))
    limit = f"watchdog.{_phase}={_limits[_phase]:g} seconds"
    close()
    notice(f"error: rank {rank()} is stuck: its {_phase} takes longer than {limit}; the stacks of its threads:")
    ranks.tell(EXIT_CODE, f"stuck: its {_phase} takes longer than {limit}; it has printed the stacks of its threads")
    faulthandler.dump_traceback(all_threads=True)
    time.sleep(LAST_WORDS)
    os._exit(EXIT_CODE)
