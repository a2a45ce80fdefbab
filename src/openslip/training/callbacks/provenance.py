"""Keeps the run's provenance, with the seconds of its training, in `env.json` and in every checkpoint."""

# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from openslip.run import watchdog
from openslip.training.pretrainer import Pretrainer


class Provenance(pl.Callback):
    """Measures the seconds of the steps of all starts, by the clock of the speeds, and stores them at each save.

    A resumed run counts on from its checkpoint, so steps that are repeated after a kill count once.

    Args:
        keep: function that writes the seconds into `env.json`, and returns the provenance that checkpoints hold; the
            seconds are None if the run was resumed from a checkpoint that does not state them.
    """

    def __init__(self, keep: Callable[[float | None], dict[str, Any]]) -> None:
        self.keep = keep
        self.earlier: float | None = None
        self.started: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        self.earlier = pl_module.provenance.get("training_seconds") if pl_module.step else 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Pretrainer, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if self.started is None:
            self.started = watchdog.step_clock()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Pretrainer, checkpoint: dict[str, Any]) -> None:
        self.store(pl_module)  # Lightning calls this before the module's hook, which adds the provenance

    def on_train_end(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        self.store(pl_module)

    def store(self, pl_module: Pretrainer) -> None:
        seconds = self.earlier
        if seconds is not None and self.started is not None:
            seconds = round(seconds + watchdog.step_clock() - self.started, 3)
        pl_module.provenance = self.keep(seconds)
