"""Runs the configured evaluations during training and at its end, on all ranks."""

# pyright: reportIncompatibleMethodOverride=false

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from openslip.arrays import write_arrays
from openslip.distributed import is_main_process
from openslip.evaluation.evaluation import Evaluation
from openslip.progress import progress
from openslip.run import watchdog
from openslip.training.logging.images import log_classified
from openslip.training.logging.metrics import log
from openslip.training.logging.predictions import log_predictions
from openslip.training.pretrainer import Pretrainer


class Evaluate(pl.Callback):
    """Runs each evaluation on its own schedule and at the end, and writes its arrays into the run's folder.

    Args:
        evaluations: evaluations by the name under which their metrics are logged, as `eval/<name>/<metric>`.

    Attributes:
        results: latest metrics of each evaluation, by its name.
        steps: step at which each evaluation last ran, by its name.
    """

    def __init__(self, evaluations: dict[str, Evaluation]) -> None:
        self.evaluations = evaluations
        self.results: dict[str, dict[str, float]] = {}
        self.steps: dict[str, int] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        # The run was stopped during its last evaluations: no step remains, so Lightning calls none of the hooks below.
        if pl_module.step == pl_module.max_steps:
            self.on_train_end(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        self.run_due(trainer, pl_module)  # evaluations that were due when the run stopped

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.run_due(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        if pl_module.step < pl_module.max_steps:  # Lightning was stopped early; the run will be resumed
            return
        for name in self.evaluations:
            self.run(name, trainer, pl_module)

    def run_due(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        step = pl_module.step
        if not 0 < step < pl_module.max_steps:  # after the last step, `on_train_end` runs all evaluations
            return
        for name, evaluation in self.evaluations.items():
            intervals = (evaluation.every_n_steps, evaluation.every_n_epochs * pl_module.data.steps_per_epoch)
            if self.steps.get(name) != step and any(steps and step % steps == 0 for steps in intervals):
                self.run(name, trainer, pl_module)

    def run(self, name: str, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        evaluation = self.evaluations[name]
        with watchdog.phase("evaluation"), progress(f"evaluating {name}"):
            self.results[name] = evaluation.run(pl_module.bundle)
            metrics = {f"eval/{name}/{metric}": value for metric, value in self.results[name].items()}
            log(trainer, {"samples_seen": pl_module.samples_seen, **metrics}, pl_module.step)
            log_predictions(trainer, name, evaluation.arrays, pl_module.step)
            log_classified(trainer, name, evaluation.arrays, pl_module.step)
            if is_main_process():
                write_arrays(Path(trainer.default_root_dir) / "arrays" / f"{name}.npz", evaluation.arrays)
        self.steps[name] = pl_module.step

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "step" in state_dict:  # saved by a version in which all evaluations shared one schedule
            self.steps = dict.fromkeys(self.evaluations, int(state_dict["step"]))
        else:
            self.steps = dict(state_dict["steps"])
