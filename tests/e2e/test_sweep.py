"""`openslip sweep` on this machine: ranks of its runs, runs that fail, and signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openslip.run.checkpoints import saved

SHORT = [
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "evaluation=none", "optim.warmup_steps=1"),
    *("callbacks.metrics.every_n_steps=1", "callbacks.save.every_n_steps=1000"),
]


def start(place: Path, *settings: str) -> subprocess.Popen:
    with (place / "log").open("w") as log:
        command = [sys.executable, "-m", "openslip", "sweep", *SHORT, *settings]
        return subprocess.Popen(command, cwd=place, stdout=log, stderr=log)


def finished(place: Path) -> int:
    return len(list(place.glob("runs/*/result.json")))


@pytest.mark.slow
def test_each_run_may_have_two_ranks(tmp_path: Path):
    sweep = start(tmp_path, "trainer=ddp", "trainer.devices=2", "trainer.max_steps=2", "seed=0,1")
    assert sweep.wait(300) == 0, (tmp_path / "log").read_text()
    assert finished(tmp_path) == 2


def test_a_run_that_fails_does_not_keep_the_next_from_its_own(tmp_path: Path):
    sweep = start(tmp_path, "trainer=cpu", "trainer.max_steps=1", "seed=-1,0")
    assert sweep.wait(300) == 1
    said = (tmp_path / "log").read_text()
    assert "error: seed=-1: expected a whole number" in said
    assert "the run ended with exit code 1" in said
    assert "Traceback" not in said
    assert finished(tmp_path) == 1


def test_a_signal_lets_the_run_save_and_stops_the_sweep(tmp_path: Path):
    sweep = start(tmp_path, "trainer=cpu", "trainer.max_steps=100000", "seed=0,1")
    deadline = time.monotonic() + 120
    while not (metrics := list(tmp_path.glob("runs/*/metrics.csv"))):
        assert sweep.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(60) == 143, (tmp_path / "log").read_text()
    assert len(list(tmp_path.glob("runs/*/config.yaml"))) == 1
    assert saved(metrics[0].parent / "checkpoints")
