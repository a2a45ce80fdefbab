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


class Stop(pl.Callback):
    """`+callbacks.stop._target_=slow_steps.Stop +callbacks.stop.at=3`: asks Lightning to leave after that step."""

    def __init__(self, *, at: int, hook: str = "on_train_batch_end") -> None:
        self.at = at
        setattr(self, hook, self.leave)

    def leave(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.step == self.at:
            trainer.should_stop = True
