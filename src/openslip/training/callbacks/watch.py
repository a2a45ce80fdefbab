"""Tells the watchdog which phase a run is in."""

# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import pytorch_lightning as pl

from openslip.run import watchdog
from openslip.training.pretrainer import Pretrainer


class Watch(pl.Callback):
    """Starts each step's time limit; the first step, which compiles kernels and starts workers, counts as set-up."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        watchdog.enter("step")
