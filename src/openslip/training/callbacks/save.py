"""Saves `checkpoints/step-000123.ckpt`: by time, by steps, at the end of epochs and of the run."""

# pyright: reportIncompatibleMethodOverride=false

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from openslip import signals
from openslip.distributed import from_first_rank, rank, share_question, shared_answer
from openslip.run import watchdog
from openslip.run.checkpoints import file_name
from openslip.terminal import notice
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.pretrainer import Pretrainer


class Save(pl.Callback):
    """Saves at each interval that is not None and after the last step; signals save by themselves.

    Training waits until its state is copied, and the copy is written while it continues. One save at a time: the next
    one, the end of training, a signal and an error wait for the one before. One that fails ends the run on all ranks.

    Args:
        every_minutes: since the last save, by the first rank's clock.
        every_n_steps: by the count of steps.
        every_n_epochs: at the end of epochs.
    """

    def __init__(self, *, every_minutes: float | None, every_n_steps: int | None, every_n_epochs: int | None) -> None:
        self.every_minutes = every_minutes
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.saved_at = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: Pretrainer, stage: str) -> None:
        self.saved_at = time.monotonic()
        # Ranks agree before each step anyway, on signals; the first rank's clock and a save that failed ride along.
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
        if isinstance(exception, signals.Preempted):  # all ranks save once more, and wait for both
            return
        watchdog.enter("checkpoint")
        if failure := checkpoint_io(trainer).wait():
            notice(f"error: {failure}", below=True)


def save(trainer: pl.Trainer, pl_module: Pretrainer) -> Path:
    """Save a checkpoint of this step: called by all ranks, returns when it is on the disk.

    Raises:
        NonFiniteError: on all ranks, where a weight or statistic is not finite; nothing is written.
        CheckpointError: on all ranks, when the first one could not write.
    """
    path = begin_save(trainer, pl_module)
    end_save(trainer)
    return path


def begin_save(trainer: pl.Trainer, pl_module: Pretrainer) -> Path:
    """Begin to save a checkpoint of this step: called by all ranks, returns when the state is copied.

    Raises:
        UserError: on all ranks, when the save before has failed, as in `save`.
    """
    end_save(trainer)
    path = Path(trainer.default_root_dir) / "checkpoints" / file_name(pl_module.step)
    with watchdog.phase("checkpoint"):
        trainer.save_checkpoint(path)
    return path


def end_save(trainer: pl.Trainer) -> None:
    """Wait for the save in flight, if there is one: called by all ranks.

    Raises:
        UserError: on all ranks, when it has failed, as in `save`.
    """
    with watchdog.phase("checkpoint"):
        failure = from_first_rank(checkpoint_io(trainer).wait())
    if failure is not None:
        raise failure


def checkpoint_io(trainer: pl.Trainer) -> DurableCheckpointIO:
    """What reads and writes the run's checkpoints."""
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, DurableCheckpointIO)
    return io
