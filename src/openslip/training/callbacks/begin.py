"""Registers the run in its folder after the first step has succeeded, so that a failed start leaves no run behind."""

# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from openslip.training.pretrainer import Pretrainer


class Begin(pl.Callback):
    """Calls `begin` after the first step, before any result of this step is stored.

    Args:
        begin: function that stores the run's config. If this start extends a finished run, it also renames the
            earlier result.
    """

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin
        self.begun = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        if pl_module.step == pl_module.max_steps:  # no steps remain, only evaluations
            self.begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.begun:
            self.begin()
            self.begun = True
