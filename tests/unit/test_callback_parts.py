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
from pytorch_lightning.loggers import Logger

from openslip import signals
from openslip.distributed import any_rank
from openslip.errors import CheckpointError
from openslip.training.callbacks import preemption, resume
from openslip.training.callbacks import save as save_module
from openslip.training.callbacks.begin import Begin
from openslip.training.callbacks.preemption import Preemption
from openslip.training.callbacks.resume import Resume, random_state, set_random_state
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


def test_the_second_of_a_pair_of_normal_numbers_is_not_lost(kept_random_state: None):
    """NumPy draws normal numbers in pairs, and keeps the second one for the next call."""
    np.random.seed(0)
    first = np.random.normal()
    state = random_state()
    set_random_state(state)
    second = np.random.normal()
    np.random.seed(0)
    assert [first, second] == np.random.normal(size=2).tolist()


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


def test_an_interval_of_time_begins_at_the_last_save(monkeypatch: pytest.MonkeyPatch):
    now, saved = 0.0, list[float]()
    monkeypatch.setattr(save_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(save_module, "begin_save", lambda *_: saved.append(now))
    monkeypatch.setattr(save_module, "checkpoint_io", lambda _: SimpleNamespace(has_failed=lambda: False))
    callback = Save(every_minutes=1, every_n_steps=None, every_n_epochs=None)
    callback.setup(trainer(), module(0), "fit")
    for step in range(1, 10):
        now = 25.0 * step
        any_rank(False)  # as before each step
        callback.on_train_batch_end(trainer(), module(step), None, None, 0)
    callback.teardown(trainer(), module(9), "fit")
    assert saved == [75.0, 150.0, 225.0]


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


def test_loggers_show_a_stopped_run_as_failed(monkeypatch: pytest.MonkeyPatch):
    for name in ("notice", "finish_wandb", "end_save"):
        monkeypatch.setattr(preemption, name, lambda *_: None)
    monkeypatch.setattr(preemption.slurm, "requeue", lambda _: None)
    monkeypatch.setattr(preemption, "saved", lambda _: [SimpleNamespace(step=5)])
    logger = Mock(spec=Logger)
    stopped = trainer()
    stopped.loggers = [logger]
    Preemption(max_time=None).on_exception(stopped, module(5), signals.Preempted())
    logger.finalize.assert_called_once_with("failed")


def test_after_the_last_step_all_ranks_stop_for_a_signal_to_one(monkeypatch: pytest.MonkeyPatch):
    """Else one rank would wait in the evaluations for those that have stopped."""
    monkeypatch.setattr(preemption, "any_rank", lambda flag: True)  # another rank has received one
    running = trainer()
    running.should_stop = False
    with pytest.raises(signals.Preempted):
        Preemption(max_time=None).on_train_batch_end(running, module(10), None, None, 0)


@pytest.mark.parametrize("first", [0, 7])
def test_a_start_is_noted_once_after_its_first_step(first: int):
    notes: list[str] = []
    callback = Begin(lambda: notes.append("start"))
    callback.on_fit_start(trainer(), module(first))
    assert not notes
    for step in range(first + 1, 11):
        callback.on_train_batch_end(trainer(), module(step), None, None, 0)
        assert notes == ["start"]
