"""Saves `checkpoints/step-000123.ckpt`, every few steps, at the end of epochs and of the run."""

# pyright: reportIncompatibleMethodOverride=false

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from openslip.distributed import from_first_rank
from openslip.errors import CheckpointError
from openslip.run import watchdog
from openslip.run.checkpoints import file_name
from openslip.training.callbacks.finite import refuse_non_finite
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.pretrainer import Pretrainer


class Save(pl.Callback):
    """Saves every `every_n_steps`, every `every_n_epochs` and after the last step; signals save by themselves."""

    def __init__(self, *, every_n_steps: int, every_n_epochs: int) -> None:
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        intervals = (self.every_n_steps, self.every_n_epochs * pl_module.data.steps_per_epoch, pl_module.max_steps)
        if any(pl_module.step % steps == 0 for steps in intervals):
            save(trainer, pl_module)


def save(trainer: pl.Trainer, pl_module: Pretrainer) -> Path:
    """Save a checkpoint of this step: called by all ranks, returns when it is on the disk.

    Raises:
        NonFiniteError: a weight or statistic is not finite; nothing is written.
        CheckpointError: on all ranks, when the first one could not write.
    """
    path = Path(trainer.default_root_dir) / "checkpoints" / file_name(pl_module.step)
    with watchdog.phase("checkpoint"):
        refuse_non_finite(pl_module.state_dict(), pl_module.step)
        trainer.save_checkpoint(path)
        io = trainer.strategy.checkpoint_io
        assert isinstance(io, DurableCheckpointIO)
        failure = from_first_rank(io.failure)
    if failure is not None:
        raise CheckpointError(failure)
    return path
