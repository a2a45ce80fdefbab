"""The seconds of training are summed over starts, in `env.json` and in every checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pretraining import Batches, fit, pretrainer

from openslip.inference.files import read
from openslip.run import watchdog
from openslip.run.checkpoints import newest_whole
from openslip.run.environment import read_seconds
from openslip.run.folder import Run
from openslip.training.callbacks.provenance import Provenance
from openslip.training.callbacks.save import Save
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.pretrainer import Pretrainer


class Clock:
    """A clock that a test sets."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "step_clock", lambda: clock.now)
    return clock


def restored(entry: dict[str, Any]) -> Pretrainer:
    """A pretrainer that has loaded a checkpoint of step 3."""
    made = pretrainer("clip", steps=9)
    made.on_load_checkpoint({"openslip": {"step": 3, **entry}})
    return made


def seconds_of(run: Run, made: Pretrainer, clock: Clock, *, set_up: float, steps: float) -> float | None:
    """Train for some seconds, after a set-up, and save."""
    callback, trainer = Provenance(run.keep_provenance), pl.Trainer(accelerator="cpu", logger=False, max_steps=1)
    callback.on_train_start(trainer, made)
    clock.now += set_up
    for _ in range(2):
        callback.on_train_batch_start(trainer, made, {}, 0)
        clock.now += steps / 2
        callback.on_train_batch_end(trainer, made, None, {}, 0)
    callback.on_save_checkpoint(trainer, made, {})
    return read_seconds(run.folder)


def test_seconds_of_all_starts_are_summed_without_their_set_up(tmp_path: Path, clock: Clock):
    run = Run(tmp_path, "unfinished")
    run.begin({"seed": 0}, {"ranks": 1})
    module = pretrainer("clip", steps=9)
    assert seconds_of(run, module, clock, set_up=100, steps=8) == 8
    kept = dict(module.provenance)
    run.begin({"seed": 0}, {"ranks": 2})
    assert read_seconds(tmp_path) == 8, "a new start keeps them"
    assert seconds_of(run, restored({"provenance": kept}), clock, set_up=50, steps=3) == 11
    starts = json.loads((tmp_path / "env.json").read_text())["starts"]
    assert [start["ranks"] for start in starts] == [1, 2]


def test_steps_that_are_repeated_after_a_kill_count_once(tmp_path: Path, clock: Clock):
    run = Run(tmp_path, "unfinished")
    run.begin({"seed": 0}, {})
    module = pretrainer("clip", steps=9)
    assert seconds_of(run, module, clock, set_up=1, steps=8) == 8
    kept = dict(module.provenance)
    assert seconds_of(run, restored({"provenance": kept}), clock, set_up=1, steps=4) == 12
    assert seconds_of(run, restored({"provenance": kept}), clock, set_up=1, steps=5) == 13


def test_an_old_checkpoint_loads_and_makes_the_sum_unknown(tmp_path: Path, clock: Clock):
    run = Run(tmp_path, "unfinished")
    run.begin({"seed": 0}, {})
    module = restored({})
    assert module.provenance == {}
    assert seconds_of(run, module, clock, set_up=1, steps=8) is None
    assert json.loads((tmp_path / "env.json").read_text())["training_seconds"] is None


@pytest.mark.parametrize("seconds", ["-1", '"x"', "[]", "null", "NaN", "1e999"])
def test_seconds_that_are_no_number_are_unknown(tmp_path: Path, seconds: str):
    (tmp_path / "env.json").write_text(f'{{"starts": [], "training_seconds": {seconds}}}')
    assert read_seconds(tmp_path) is None


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*")
def test_each_checkpoint_holds_what_env_json_says_when_it_is_saved(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    run = Run(tmp_path, "new")
    run.begin({"seed": 0}, {"ranks": 1})
    save = Save(every_minutes=None, every_n_steps=2, every_n_epochs=None)
    made = pretrainer("clip", steps=4)
    callbacks = [Provenance(run.keep_provenance), save]
    fit(made, 4, callbacks=callbacks, plugins=[DurableCheckpointIO()], data=Batches(4, torch.float64), folder=tmp_path)
    said = json.loads((tmp_path / "env.json").read_text())
    assert said["training_seconds"] > 0
    last = read(newest_whole(tmp_path / "checkpoints").path)["openslip"]
    first = read(tmp_path / "checkpoints" / "step-000002.ckpt")["openslip"]
    assert last["step"] == 4
    assert last["provenance"]["starts"] == first["provenance"]["starts"] == said["starts"]
    times = [entry["provenance"]["training_seconds"] for entry in (first, last)]
    assert 0 < times[0] < times[1] <= said["training_seconds"]


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openslip.run.folder.is_main_process", lambda: False)
    assert Run(tmp_path, "new").keep_provenance(3.0) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_keeps_the_origin_of_its_initial_weights():
    origin = {"checkpoint": {"path": "runs/first", "sha256": "0"}}
    saved = {"openslip": {}, "rank_buffers": {}}
    restored({"init_from": origin}).on_save_checkpoint(saved)
    assert saved["openslip"]["init_from"] == origin
