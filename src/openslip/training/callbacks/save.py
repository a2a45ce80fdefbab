"""Saves `checkpoints/step-000123.ckpt`, every few steps, at the end of epochs and of the run."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from openslip.distributed import from_first_rank
from openslip.errors import CheckpointError
from openslip.run import watchdog
from openslip.run.checkpoints import file_name
from openslip.training.callbacks.finite import refuse_non_finite
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.logging.csv_logger import CsvLogger
from openslip.training.logging.metrics import Metrics
from openslip.training.pretrainer import Pretrainer


class Save(pl.Callback):
    """Every `every_n_steps`, every `every_n_epochs`, after the last step, and when a signal has asked to stop."""

    def __init__(self, *, every_n_steps: int, every_n_epochs: int) -> None:
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretrainer)
        epochs = int(trainer.num_training_batches) * self.every_n_epochs
        # By the step, not by Lightning's epochs: after a resume in the middle of one, its hooks come at other times.
        if (
            pl_module.step % self.every_n_steps == 0
            or pl_module.step % epochs == 0
            or trainer.max_steps == pl_module.step
        ):
            save(trainer, pl_module)


def save(trainer: pl.Trainer, pl_module: Pretrainer) -> Path:
    """Called by all ranks at the same step; returns when the checkpoint is on the disk.

    Raises:
        NonFiniteError: a weight or statistic is not finite; nothing is written.
        CheckpointError: on all ranks, when the first one could not write.
    """
    path = Path(trainer.default_root_dir) / "checkpoints" / file_name(pl_module.step)
    with watchdog.phase("checkpoint"):
        refuse_non_finite(pl_module.state_dict(), pl_module.step)
        # What is logged late belongs to the steps before: a run that goes on from there must not lack the row.
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, Metrics):
                callback.write(trainer, pl_module)
        for logger in trainer.loggers:
            if isinstance(logger, CsvLogger):
                logger.sync()
        trainer.save_checkpoint(path)
        io = trainer.strategy.checkpoint_io
        assert isinstance(io, DurableCheckpointIO)
        failure = from_first_rank(io.failure)
    if failure is not None:
        raise CheckpointError(failure)
    return path
