"""Prints in the middle of training, as the project, libraries and users' code do."""

from typing import Any

import pytorch_lightning as pl

from openslip.terminal import notice

WARNING = f"WARNING: a notice {'that is longer than the terminal is wide ' * 3}ends"
PRINTED = "printed by a callback"


class Noisy(pl.Callback):
    """Prints after steps 5 and 7."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 5:
            notice(WARNING)
        if trainer.global_step == 7:
            print(PRINTED)  # noqa: T201
