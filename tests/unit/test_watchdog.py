"""The clock of the steps; that a process which is stuck ends is seen in test_interruptions."""

import time
from contextlib import suppress

import pytest

from openslip.run import watchdog
from openslip.run.watchdog import phase, step_clock


def test_the_clock_of_the_steps_stands_still_in_a_phase_even_if_it_fails(monkeypatch: pytest.MonkeyPatch):
    now = 8.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    before = step_clock()
    now += 1.0
    with phase("evaluation"):
        now += 16.0
    assert step_clock() - before == 1.0
    with suppress(OSError), phase("checkpoint"):
        now += 32.0
        raise OSError
    now += 2.0
    assert step_clock() - before == 3.0


def test_after_a_nested_phase_the_limit_of_the_outer_one_starts_again(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(watchdog, "_limits", {"step": 10.0, "evaluation": 3600.0})
    monkeypatch.setattr(watchdog, "_phase", "")
    monkeypatch.setattr(watchdog, "_deadline", 0.0)
    watchdog.enter("step")
    with phase("evaluation"):
        assert (watchdog._phase, watchdog._deadline) == ("evaluation", 3600.0)
        now = 100.0
    assert (watchdog._phase, watchdog._deadline) == ("step", 110.0)
