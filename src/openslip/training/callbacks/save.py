"""Saves `checkpoints/last.ckpt` at the end of epochs and of the run, whole or not at all."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import TorchCheckpointIO

from openslip.checkpoint import write


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes through a temporary file in the same folder; Lightning's own save tears files across file systems."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write(Path(path), checkpoint)


class Save(pl.Callback):
    """Every `every_n_epochs`, and when training ends."""

    def __init__(self, *, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            trainer.save_checkpoint(self.folder(trainer) / "last.ckpt")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.folder(trainer) / "last.ckpt")

    def folder(self, trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"
