"""Keeps the run's provenance, with the seconds of its training, in `env.json` and in every checkpoint."""

# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from openslip.run import watchdog
from openslip.training.pretrainer import Pretrainer


class Provenance(pl.Callback):
    """Sums the seconds of the steps of all starts, with the clock of `speed/*`, and stores them at each save.

    A resumed run continues the sum of its checkpoint, so steps that are repeated after a kill are counted once.

    Args:
        keep: function that writes the seconds into `env.json`, and returns the provenance that checkpoints hold; the
            seconds are None if the run was resumed from a checkpoint that does not state them.
    """

    def __init__(self, keep: Callable[[float | None], dict[str, Any]]) -> None:
        self.keep = keep
        self.seconds: float | None = None  # sum over all starts
        self.last: float | None = None  # time at the end of the last step, or at the start of the first one

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        self.seconds = pl_module.provenance.get("training_seconds") if pl_module.step else 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Pretrainer, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if self.last is None:
            self.last = watchdog.step_clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = watchdog.step_clock()
        if self.seconds is not None and self.last is not None:
            self.seconds += now - self.last
        self.last = now

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Pretrainer, checkpoint: dict[str, Any]) -> None:
        self.store(pl_module)  # Lightning calls this before the module's hook, which adds the provenance

    def on_train_end(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        self.store(pl_module)

    def store(self, pl_module: Pretrainer) -> None:
        """Write the seconds into `env.json`, and give its content to the module for the checkpoint."""
        pl_module.provenance = self.keep(None if self.seconds is None else round(self.seconds, 3))
