"""Steps that leave time for something to happen between them."""

import time
from typing import Any

import pytorch_lightning as pl


class SlowSteps(pl.Callback):
    """`+callbacks.slow._target_=slow_steps.SlowSteps +callbacks.slow.seconds=0.1`."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        time.sleep(self.seconds)
