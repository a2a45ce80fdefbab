"""Saves checkpoints such as `checkpoints/step-000123.ckpt`: by time, steps, epochs, and at the end of the run."""

# pyright: reportIncompatibleMethodOverride=false

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from openslip import signals
from openslip.distributed import from_first_rank, is_main_process, rank, share_question, shared_answer
from openslip.run import watchdog
from openslip.run.checkpoints import file_name, point_best, saved
from openslip.terminal import notice
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.pretrainer import Pretrainer


class Save(pl.Callback):
    """Saves at each interval that is not None and after the last step.

    `Preemption` saves when the run is stopped, and `Evaluate` saves a new best result.

    Training waits until its state is copied, and continues while the copy is written. Only one save is in progress at
    a time. The next save, and a process that ends, wait until it is complete. A failed save ends the run on all
    ranks.

    Args:
        every_minutes: minutes since the last save, by rank 0's clock.
        every_n_steps: steps between saves.
        every_n_epochs: epochs between saves.
    """

    def __init__(self, *, every_minutes: float | None, every_n_steps: int | None, every_n_epochs: int | None) -> None:
        self.every_minutes = every_minutes
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.saved_at = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: Pretrainer, stage: str) -> None:
        self.saved_at = time.monotonic()
        # Before each step, ranks exchange whether a signal has arrived. In the same exchange, rank 0 tells the other
        # ranks that it is time to save, or that a save has failed.
        share_question(lambda: rank() == 0 and (self.is_time() or checkpoint_io(trainer).has_failed()))

    def is_time(self) -> bool:
        return self.every_minutes is not None and time.monotonic() - self.saved_at >= 60 * self.every_minutes

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        epochs = self.every_n_epochs and self.every_n_epochs * pl_module.data.steps_per_epoch
        intervals = (self.every_n_steps, epochs, pl_module.max_steps)
        if shared_answer() or any(steps and pl_module.step % steps == 0 for steps in intervals):
            begin_save(trainer, pl_module)
            self.saved_at = time.monotonic()

    def teardown(self, trainer: pl.Trainer, pl_module: Pretrainer, stage: str) -> None:
        share_question(None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        end_save(trainer)  # before the evaluations at the end, which may take hours

    def on_exception(self, trainer: pl.Trainer, pl_module: Pretrainer, exception: BaseException) -> None:
        if isinstance(exception, signals.Preempted):  # `Preemption` waits for the save, and saves once more
            return
        watchdog.enter("checkpoint")
        if failure := checkpoint_io(trainer).wait():
            notice(f"error: {failure}")


def save(trainer: pl.Trainer, pl_module: Pretrainer) -> Path:
    """Save a checkpoint of this step and return its path when the file is on the disk; called by all ranks.

    Raises:
        NonFiniteError: a weight or statistic is not finite, and nothing is written; raised on all ranks.
        CheckpointError: rank 0 could not write the file; raised on all ranks.
    """
    path = begin_save(trainer, pl_module)
    end_save(trainer)
    return path


def keep_best(trainer: pl.Trainer, pl_module: Pretrainer) -> None:
    """Point `checkpoints/best.ckpt` at the checkpoint of this step, which is saved if needed; called by all ranks.

    Without a `Save` callback, as in callbacks=none, no checkpoint is kept.

    Raises:
        UserError: a save has failed, for a reason listed in `save`; raised on all ranks.
    """
    if not any(isinstance(callback, Save) for callback in trainer.callbacks):  # pyright: ignore[reportAttributeAccessIssue]
        return
    end_save(trainer)
    folder = Path(trainer.default_root_dir) / "checkpoints"
    if from_first_rank(all(checkpoint.step != pl_module.step for checkpoint in saved(folder))):
        save(trainer, pl_module)
    if is_main_process():
        point_best(folder, pl_module.step)


def begin_save(trainer: pl.Trainer, pl_module: Pretrainer) -> Path:
    """Begin to save a checkpoint of this step, and return its path when the state is copied; called by all ranks.

    Raises:
        UserError: the previous save has failed, for a reason listed in `save`; raised on all ranks.
    """
    end_save(trainer)
    path = Path(trainer.default_root_dir) / "checkpoints" / file_name(pl_module.step)
    with watchdog.phase("checkpoint"):
        trainer.save_checkpoint(path)
    return path


def end_save(trainer: pl.Trainer) -> None:
    """Wait for the save in progress, if there is one; called by all ranks.

    Raises:
        UserError: the save in progress has failed, for a reason listed in `save`; raised on all ranks.
    """
    with watchdog.phase("checkpoint"):
        failure = from_first_rank(checkpoint_io(trainer).wait())
    if failure is not None:
        raise failure


def checkpoint_io(trainer: pl.Trainer) -> DurableCheckpointIO:
    """Return the plugin that reads and writes the run's checkpoints."""
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, DurableCheckpointIO)
    return io
