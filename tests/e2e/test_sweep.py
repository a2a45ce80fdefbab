"""`openslip sweep` on this machine: ranks of its runs, runs that fail, and signals."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from shard_files import write_pairs

from openslip.run.checkpoints import saved

ROOT = Path(__file__).parents[2]
SHORT = [
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "evaluation=none", "optim.warmup_steps=1"),
    *("callbacks.metrics.every_n_steps=1", "callbacks.save.every_n_steps=1000"),
]


def start(place: Path, *settings: str, entry: Sequence[str] = ("-m", "openslip", "sweep")) -> subprocess.Popen:
    with (place / "log").open("w") as log:
        command = [sys.executable, *entry, *SHORT, *settings]
        return subprocess.Popen(command, cwd=place, stdout=log, stderr=log)


def finished(place: Path) -> int:
    return len(list(place.glob("runs/*/result.json")))


@pytest.mark.slow
def test_each_run_may_have_two_ranks(tmp_path: Path):
    sweep = start(tmp_path, "trainer=ddp", "trainer.devices=2", "trainer.max_steps=2", "seed=0,1")
    assert sweep.wait(300) == 0, (tmp_path / "log").read_text()
    assert finished(tmp_path) == 2


@pytest.mark.slow
def test_train_with_m_sweeps_settings_of_any_form_in_folders_of_any_name(tmp_path: Path):
    odd = "a=b#c'd~e[f]{g}(h),i j"
    own = tmp_path / odd / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\noptim: {lr: 0.002}\n")
    write_pairs(tmp_path / odd / "0.tar", 8)
    words = ["-m", "trainer=cpu", "--trainer.max_steps=1", "global_batch_size=4", "seed=range(2)", "experiment=mine"]
    places = [f"--config-dir={odd}", f"data.source.shards={odd}/0.tar", f"runs_dir={odd}", "data=webdataset"]
    sweep = start(tmp_path, *words, *places, "--data.num_workers=0", entry=[str(ROOT / "train.py")])
    assert sweep.wait(300) == 0, (tmp_path / "log").read_text()
    configs = [yaml.safe_load(file.read_text()) for file in (tmp_path / odd).glob("mine-*/config.yaml")]
    assert sorted(config["seed"] for config in configs) == [0, 1]
    assert {config["optim"]["lr"] for config in configs} == {0.002}


@pytest.mark.slow
def test_a_run_that_fails_does_not_keep_the_next_from_its_own(tmp_path: Path):
    sweep = start(tmp_path, "trainer=cpu", "trainer.max_steps=1", "seed=-1,0")
    assert sweep.wait(300) == 1
    said = (tmp_path / "log").read_text()
    assert "error: seed=-1: expected a whole number" in said
    assert "the run ended with exit code 1" in said
    assert "Traceback" not in said
    assert finished(tmp_path) == 1


@pytest.mark.slow
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
