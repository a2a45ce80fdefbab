"""Parts of the callbacks that save and resume, each without a training."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from openslip import signals
from openslip.errors import CheckpointError
from openslip.training.callbacks import preemption, resume
from openslip.training.callbacks import save as save_module
from openslip.training.callbacks.preemption import Preemption
from openslip.training.callbacks.resume import Resume, random_state
from openslip.training.callbacks.save import Save
from openslip.training.logging.csv_logger import CsvLogger
from openslip.training.pretrainer import Pretrainer


def module(step: int, max_steps: int = 10) -> Any:
    data = SimpleNamespace(steps_per_epoch=4, consumed=step)
    return Mock(spec=Pretrainer, step=step, max_steps=max_steps, data=data)


def trainer(step: int = 0, folder: Path = Path()) -> Any:
    return Mock(spec=pl.Trainer, global_step=step, default_root_dir=str(folder))


@pytest.fixture
def kept_random_state():
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_every_rank_goes_on_with_its_own_random_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_random_state: None
):
    states, expected = [], []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        states.append(random_state())
        expected.append(draw())
    callback = Resume(resumes=True, rows=CsvLogger(tmp_path / "metrics.csv"))
    callback.load_state_dict({"random": states})
    for number in (1, 0):
        monkeypatch.setattr(resume, "rank", lambda number=number: number)
        callback.on_train_start(trainer(3), module(3))
        assert draw() == expected[number]


def test_ranks_that_have_no_state_draw_other_numbers_than_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_random_state: None
):
    """A run of one rank is resumed by three."""
    torch.manual_seed(0)
    callback = Resume(resumes=True, rows=CsvLogger(tmp_path / "metrics.csv"))
    callback.load_state_dict({"random": [random_state()]})
    drawn = set()
    for number in range(3):
        torch.manual_seed(0)
        monkeypatch.setattr(resume, "rank", lambda number=number: number)
        callback.on_train_start(trainer(3), module(3))
        drawn.add(float(torch.rand(())))
    assert len(drawn) == 3


def test_rows_of_later_steps_are_dropped_and_all_others_are_on_the_disk_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = CsvLogger(tmp_path / "metrics.csv")
    for step in range(1, 6):
        rows.log_metrics({"loss": 1.0}, step)
    synced: list[int] = []
    monkeypatch.setattr(rows, "sync", lambda: synced.append(1))
    callback = Resume(resumes=True, rows=rows)
    callback.on_fit_start(trainer(3), module(3))
    assert rows.path.read_text().splitlines()[-1].startswith("3,")
    callback.on_save_checkpoint(trainer(3), module(3), {})
    assert synced == [1]


def test_the_last_step_is_saved_though_no_interval_ends_there(monkeypatch: pytest.MonkeyPatch):
    saved: list[int] = []
    monkeypatch.setattr(save_module, "begin_save", lambda _, pl_module: saved.append(pl_module.step))
    callback = Save(every_minutes=None, every_n_steps=3, every_n_epochs=1)
    for step in range(1, 11):
        callback.on_train_batch_end(trainer(), module(step), None, None, 0)
    assert saved == [3, 4, 6, 8, 9, 10]


def test_a_training_ends_when_its_last_checkpoint_is_written(monkeypatch: pytest.MonkeyPatch):
    """Not after the evaluations that follow, which may take hours: a failure is known before them."""
    failed = SimpleNamespace(wait=lambda: CheckpointError("disk full"))
    monkeypatch.setattr(save_module, "checkpoint_io", lambda _: failed)
    with pytest.raises(CheckpointError, match="disk full"):
        Save(every_minutes=None, every_n_steps=1, every_n_epochs=None).on_train_end(trainer(), module(10))


@pytest.mark.parametrize(("on_disk", "order"), [(3, ["waited", "listed", "saved"]), (5, ["waited", "listed"])])
def test_a_stopped_run_waits_for_its_save_and_then_writes_no_step_twice(
    monkeypatch: pytest.MonkeyPatch, on_disk: int, order: list[str]
):
    """The save in progress may be that of the step after which the run is stopped."""
    happened: list[str] = []
    checkpoints = [SimpleNamespace(step=on_disk)]
    monkeypatch.setattr(preemption, "end_save", lambda _: happened.append("waited"))
    monkeypatch.setattr(preemption, "saved", lambda _: happened.append("listed") or checkpoints)
    monkeypatch.setattr(preemption, "save", lambda *_: happened.append("saved"))
    for name in ("notice", "finish_wandb", "send"):
        monkeypatch.setattr(preemption, name, lambda *_: None)
    monkeypatch.setattr(preemption.slurm, "requeue", lambda _: None)
    Preemption(max_time=None).on_exception(trainer(), module(5), signals.Preempted())
    assert happened == order
