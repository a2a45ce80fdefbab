"""Runs the configured evaluations during training and at its end, on all ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from openslip.durable import write_arrays
from openslip.evaluation.evaluation import Evaluation
from openslip.inference.bundle import Bundle
from openslip.run import watchdog
from openslip.training.logging.metrics import log, samples_seen
from openslip.training.logging.predictions import log_predictions
from openslip.training.pretrainer import Pretrainer


class Evaluate(pl.Callback):
    """Logs `eval/<name>/<metric>` and leaves each evaluation's arrays in the run's folder.

    Args:
        evaluations: name to evaluation.
        bundle: model and device to what an evaluation takes.
        every_n_epochs: 0 for the end of the run only.
    """

    def __init__(
        self, *, evaluations: dict[str, Evaluation], bundle: Callable[..., Bundle], every_n_epochs: int
    ) -> None:
        self.evaluations = evaluations
        self.bundle = bundle
        self.every_n_epochs = every_n_epochs
        self.results: dict[str, dict[str, float]] = {}
        self.evaluated_step = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretrainer)
        # Stopped during its last evaluation: no step is left, so Lightning calls nothing else.
        if pl_module.step == trainer.max_steps:
            self.evaluate(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.evaluate_if_due(trainer, pl_module)  # stopped between the step and its evaluation

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.evaluate_if_due(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretrainer)
        self.evaluate(trainer, pl_module)

    def evaluate_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretrainer)
        step, steps = pl_module.step, int(trainer.num_training_batches) * self.every_n_epochs
        if step and steps and step % steps == 0 and step not in (self.evaluated_step, trainer.max_steps):
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        for name, evaluation in self.evaluations.items():
            with watchdog.phase("evaluation"):
                self.results[name] = evaluation.run(self.bundle(model=pl_module.evaluated, device=pl_module.device))
                logged = {f"eval/{name}/{metric}": value for metric, value in self.results[name].items()}
                log(trainer, {**samples_seen(trainer, pl_module.step), **logged}, pl_module.step)
                log_predictions(trainer, name, evaluation.arrays, pl_module.step)
                if trainer.is_global_zero:
                    folder = Path(trainer.default_root_dir) / "arrays"
                    folder.mkdir(exist_ok=True)
                    write_arrays(folder / f"{name}.npz", evaluation.arrays)
        self.evaluated_step = pl_module.step

    def state_dict(self) -> dict[str, int]:
        return {"step": self.evaluated_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.evaluated_step = state_dict["step"]
