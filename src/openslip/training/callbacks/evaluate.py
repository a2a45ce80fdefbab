"""Runs the configured evaluations during training and at its end, on all ranks."""

# pyright: reportIncompatibleMethodOverride=false

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from openslip.arrays import write_arrays
from openslip.distributed import from_first_rank, is_main_process
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.feature_cache import FeatureCache
from openslip.evaluation.image_features import sharing
from openslip.progress import progress
from openslip.run import watchdog
from openslip.run.checkpoints import point_best
from openslip.run.folder import result_at
from openslip.training.best import Best, better
from openslip.training.callbacks.save import keep_best
from openslip.training.logging.images import log_classified
from openslip.training.logging.metrics import log
from openslip.training.logging.predictions import log_predictions
from openslip.training.pretrainer import Pretrainer


class Evaluate(pl.Callback):
    """Runs each evaluation on its own schedule and at the end, and writes its arrays into the run's folder.

    If the run has EMA weights, an evaluation measures the trained weights and then the EMA weights; arrays and the best
    result are those of the EMA weights, because `openslip.load` loads these.

    `checkpoints/best.ckpt` links to the checkpoint with the best headline metric of one evaluation. This is the first
    evaluation in `evaluations` that has both an interval and a best result. If no evaluation has both, it is the first
    that runs only at the end and has a best result. An evaluation has no best result if higher values of its headline
    metric are neither better nor worse, or if the metric was never finite.

    Args:
        evaluations: evaluations by the name under which their metrics are logged, as `eval/<name>/<metric>`, and those
            of the EMA weights as `eval_ema/<name>/<metric>`.

    Attributes:
        results: latest metrics of each evaluation, by its name.
        ema_results: the same of the EMA weights.
        steps: step at which each evaluation last ran, by its name.
        best: best result of each evaluation, by its name.
    """

    def __init__(self, evaluations: dict[str, Evaluation]) -> None:
        self.evaluations = evaluations
        self.results: dict[str, dict[str, float]] = {}
        self.ema_results: dict[str, dict[str, float]] = {}
        self.steps: dict[str, int] = {}
        self.best: dict[str, Best] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        # The checkpoint of the last step is saved before the evaluations at the end; a run that is extended from it
        # takes their results from `result.json`.
        result = from_first_rank(result_at(Path(trainer.default_root_dir), pl_module.step))
        if result is not None:
            self.steps |= dict.fromkeys(result["metrics"], pl_module.step)
            self.best |= {name: Best(**best) for name, best in result["best"].items()}
        if is_main_process():  # needed if the run was killed before the link was set, or resumes before the best step
            point_best(Path(trainer.default_root_dir) / "checkpoints", self.best_step())
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
        self.run(list(self.evaluations), trainer, pl_module)

    def run_due(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        step = pl_module.step
        if not 0 < step < pl_module.max_steps:  # after the last step, `on_train_end` runs all evaluations
            return
        due = []
        for name, evaluation in self.evaluations.items():
            intervals = (evaluation.every_n_steps, evaluation.every_n_epochs * pl_module.data.steps_per_epoch)
            if self.steps.get(name) != step and any(steps and step % steps == 0 for steps in intervals):
                due.append(name)
        self.run(due, trainer, pl_module)

    def run(self, names: list[str], trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        """Run evaluations, with the features of each source computed once; keep the checkpoint of a new best result."""
        caches = {kind: FeatureCache(None) for kind in pl_module.bundles}  # new ones, because weights have changed
        former = self.best_step()
        for name in names:
            self.run_one(name, caches if len(names) > 1 else {}, trainer, pl_module)
        if self.best_step() == pl_module.step != former:
            keep_best(trainer, pl_module)

    def run_one(self, name: str, caches: dict[str, FeatureCache], trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        evaluation, step = self.evaluations[name], pl_module.step
        with watchdog.phase("evaluation"), progress(f"evaluating {name}"):
            logged: dict[str, float] = {"samples_seen": pl_module.samples_seen}
            metrics: dict[str, float] = {}
            for kind, bundle in pl_module.bundles.items():  # those that `openslip.load` would load come last
                with sharing(caches[kind]) if caches else nullcontext():
                    # Rank 0's values, because results may differ in the last bits and all ranks must agree on the best.
                    metrics = from_first_rank(evaluation.run(bundle))
                {"eval": self.results, "eval_ema": self.ema_results}[kind][name] = metrics
                logged |= {f"{kind}/{name}/{metric}": value for metric, value in metrics.items()}
            best = better(evaluation, self.best.get(name), metrics, step)
            if best is not None:
                self.best[name] = best
            log(trainer, logged, step)
            log_predictions(trainer, name, evaluation.arrays, step)
            log_classified(trainer, name, evaluation.arrays, step)
            if is_main_process():
                write_arrays(Path(trainer.default_root_dir) / "arrays" / f"{name}.npz", evaluation.arrays)
        self.steps[name] = step

    def best_step(self) -> int | None:
        """Return the step of the result that decides which checkpoint is the best; None without such a result."""
        at_end_only = {name: not (one.every_n_steps or one.every_n_epochs) for name, one in self.evaluations.items()}
        in_order = sorted(self.evaluations, key=at_end_only.__getitem__)
        return next((self.best[name].step for name in in_order if name in self.best), None)

    def headlines(self) -> list[str]:
        """Return the headline of each latest result, followed by the best one if that is of an earlier step."""
        lines = []
        for name, metrics in self.results.items():
            evaluation, best = self.evaluations[name], self.best.get(name)
            ended = f"; {best.line()}" if best is not None and best.step < self.steps[name] else ""
            if name in self.ema_results:
                lines.append(f"{evaluation.headline(self.ema_results[name])} (EMA weights){ended}")
                lines.append(f"{evaluation.headline(metrics)} (trained weights)")
            else:
                lines.append(f"{evaluation.headline(metrics)}{ended}")
        return lines

    def outcome(self) -> dict[str, Any]:
        """Return the latest metrics and the best results, as a run's `result.json` holds them."""
        ema = {"ema_metrics": self.ema_results} if self.ema_results else {}
        return {"metrics": self.results, **ema, "best": {name: best._asdict() for name, best in self.best.items()}}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "best": {name: best._asdict() for name, best in self.best.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "step" in state_dict:  # saved by a version in which all evaluations shared one schedule
            self.steps = dict.fromkeys(self.evaluations, int(state_dict["step"]))
        else:
            self.steps = dict(state_dict["steps"])
        # Missing in checkpoints of early versions.
        self.best = {name: Best(**best) for name, best in state_dict.get("best", {}).items()}
