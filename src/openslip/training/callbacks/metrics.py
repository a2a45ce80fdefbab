"""What a step measured, for the loggers and as one live line."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from openslip.data.datamodule import DataModule
from openslip.distributed import world_size
from openslip.training.callbacks.finite import Finite
from openslip.training.csv_logger import CsvLogger
from openslip.training.pretrainer import Pretrainer


class Metrics(pl.Callback):
    """Every `every_n_steps`: loss terms (mean over ranks), logit scale, learning rate, samples/s, time left.

    What the data module tells (bad samples, captions that were cut off) is of the first rank.
    """

    def __init__(self, *, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.live = sys.stderr.isatty()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = self.last_time = time.perf_counter()
        self.first_step = self.last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Pretrainer)
        step = trainer.global_step
        total = pl_module.schedule.total_steps
        if step % self.every_n_steps and step != total and step != 1:
            return
        metrics = {f"train/{name}": value for name, value in mean_over_ranks(pl_module.terms).items()}
        logit_scale = getattr(pl_module.model, "logit_scale", None)
        if logit_scale is not None:
            metrics["train/logit_scale"] = logit_scale.detach().exp().item()
        metrics["train/lr"] = pl_module.schedule(step - 1)
        global_batch_size = len(next(iter(batch.values()))) * world_size()
        now = time.perf_counter()
        speed = (step - self.last_step) * global_batch_size / max(now - self.last_time, 1e-9)
        self.last_time, self.last_step = now, step
        logged = {"samples_seen": step * global_batch_size, **metrics, "speed/samples_per_second": speed}
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(callback, Finite):
                logged["train/skipped"] = float(callback.skipped)
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(data, DataModule):
            logged |= data.figures()
        log(trainer, logged, step)
        if trainer.is_global_zero:
            remaining = (now - self.started) / (step - self.first_step) * (total - step)
            self.show(step, total, metrics, speed, remaining)

    def show(self, step: int, total: int, metrics: dict[str, float], speed: float, remaining: float) -> None:
        """Redraws one line on a terminal; elsewhere (a log file) prints about twenty lines a run."""
        parts = [f"{name.removeprefix('train/')} {value:.4g}" for name, value in metrics.items()]
        line = f"step {step}/{total}  {'  '.join(parts)}  {speed:.0f} samples/s  ETA {duration(remaining)}"
        if self.live:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if step == total else ""))
        elif step == total or step == 1 or step % max(total // 20 // self.every_n_steps * self.every_n_steps, 1) == 0:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def log(trainer: pl.Trainer, metrics: dict[str, float], step: int) -> None:
    """To all loggers; one that fails is named and dropped, but for the CSV file, which every run must have."""
    for logger in list(trainer.loggers):
        try:
            logger.log_metrics(metrics, step)
        except Exception as error:
            if isinstance(logger, CsvLogger):
                raise
            trainer.loggers = [other for other in trainer.loggers if other is not logger]
            sys.stderr.write(f"\nlogger {type(logger).__name__} failed at step {step} and is dropped: {error}\n")


def mean_over_ranks(terms: dict[str, torch.Tensor]) -> dict[str, float]:
    """One reduction for all terms; the mean over ranks of `loss` is the loss of the global batch."""
    values = torch.stack([term.double() if term.device.type != "mps" else term.float() for term in terms.values()])
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return dict(zip(terms, values.tolist(), strict=True))


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
