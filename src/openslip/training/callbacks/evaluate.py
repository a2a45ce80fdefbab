"""Runs the configured evaluations during training and at its end, on all ranks."""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl

from openslip.evaluation.evaluation import Evaluation
from openslip.training.callbacks.metrics import log, samples_seen
from openslip.training.callbacks.predictions import log_predictions
from openslip.training.pretrainer import Pretrainer


class Evaluate(pl.Callback):
    """Logs `eval/<name>/<metric>` and leaves each evaluation's arrays in the run's folder.

    Args:
        evaluations: name to evaluation.
        every_n_epochs: 0 for the end of the run only.
    """

    def __init__(self, *, evaluations: dict[str, Evaluation], every_n_epochs: int) -> None:
        self.evaluations = evaluations
        self.every_n_epochs = every_n_epochs
        self.results: dict[str, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = trainer.global_step == trainer.max_steps  # `on_train_end` evaluates that one
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0 and not last:
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretrainer)
        for name, evaluation in self.evaluations.items():
            self.results[name] = evaluation.run(pl_module.evaluated, pl_module.device)
            logged = {f"eval/{name}/{metric}": value for metric, value in self.results[name].items()}
            log(trainer, {**samples_seen(trainer, trainer.global_step), **logged}, trainer.global_step)
            log_predictions(trainer, name, evaluation.arrays, trainer.global_step)
            if trainer.is_global_zero:
                folder = Path(trainer.default_root_dir) / "arrays"
                folder.mkdir(exist_ok=True)
                np.savez_compressed(folder / f"{name}.npz", **evaluation.arrays)  # pyright: ignore[reportArgumentType]
