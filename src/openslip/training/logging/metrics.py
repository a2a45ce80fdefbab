"""Logs the metrics of steps, and shows them in the status line."""

# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import Tensor

from openslip.distributed import is_main_process, world_size
from openslip.errors import CheckpointError
from openslip.run import watchdog
from openslip.terminal import notice
from openslip.training.logging.late import LateMetrics
from openslip.training.logging.status_line import StatusLine
from openslip.training.pretrainer import Pretrainer
from openslip.training.sizing.flops import TRAINING_OVER_FORWARD, forward_flops, peak_tflops
from openslip.training.sizing.memory import peak_memory

COUNTED_SAMPLES = 8  # samples whose FLOPs are counted: enough captions for a typical mean length


class Metrics(pl.Callback):
    """Logs loss terms (mean over ranks), exp(logit_scale), learning rate, speed, memory and remaining time.

    On a GPU, the metrics are read one step later, so that no step waits for them. Metrics of the data module (bad
    samples, truncated captions, time spent waiting for data) and the peak memory are those of rank 0. Speeds
    and the remaining time count only the time of steps: the clock starts with the first step, after set-up, and pauses
    during evaluations and saves.

    Args:
        every_n_steps: interval between logged steps, in steps; the first and the last step are always logged.
        devices: table of peak rates of GPUs, `{word of the GPU's name: {tflops: ...}}`.
        peak_tflops: peak rate in TFLOP/s; None to use the table `devices`. If no peak rate is known, no utilisation is
            logged.
    """

    def __init__(self, *, every_n_steps: int, devices: dict[str, dict[str, Any]], peak_tflops: float | None) -> None:
        self.every_n_steps = every_n_steps
        self.devices = devices
        self.peak_tflops = peak_tflops
        self.line = StatusLine(every_n_steps=every_n_steps)
        self.flops: float | None = None  # FLOPs of training per sample
        self.peak: float | None = None  # peak FLOP/s of one device
        # Last measured step, its metrics that are being copied from the device, and its metrics already on the host.
        self.measured: tuple[int, LateMetrics, dict[str, float | int]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Pretrainer, stage: str) -> None:
        if is_main_process():
            self.line.begin()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        peak = self.peak_tflops or peak_tflops(pl_module.device, self.devices)
        self.peak = peak and 1e12 * peak
        self.first_step = self.last_step = pl_module.step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Pretrainer, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if pl_module.step > self.first_step:
            return
        if self.peak is not None:
            some = {key: column[:COUNTED_SAMPLES] for key, column in batch.items()}
            with trainer.precision_plugin.forward_context():
                self.flops = TRAINING_OVER_FORWARD * forward_flops(pl_module.objective, pl_module.model, some)
        self.started = self.last_time = watchdog.step_clock()
        self.last_waited = pl_module.data.waited

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        self.write(trainer, pl_module)
        step = pl_module.step
        if step % self.every_n_steps and step not in (1, pl_module.max_steps):
            return
        late = {f"train/{name}": term for name, term in pl_module.terms.items()}
        logit_scale = getattr(pl_module.model, "logit_scale", None)
        if logit_scale is not None:
            late["train/logit_scale"] = logit_scale.detach().exp()
        global_batch_size = len(next(iter(batch.values()))) * world_size()
        known: dict[str, float | int] = {"samples_seen": pl_module.samples_seen}
        known["train/lr"] = pl_module.schedule(step - 1)
        known |= {f"train/{name}": number for name, number in pl_module.scheduled.items()}
        known |= self.speed(pl_module, step, global_batch_size) | pl_module.data.metrics()
        self.measured = step, LateMetrics(late), known
        if pl_module.device.type != "cuda":  # on a CPU the metrics are available at once
            self.write(trainer, pl_module)

    def speed(self, pl_module: Pretrainer, step: int, global_batch_size: int) -> dict[str, float]:
        """Return the speeds since the previously measured step."""
        now = watchdog.step_clock()
        seconds = max(now - self.last_time, 1e-9)
        samples = (step - self.last_step) * global_batch_size / seconds
        remaining = (now - self.started) / (step - self.first_step) * (pl_module.max_steps - step)
        speed = {
            "samples_per_second": samples,
            "samples_per_second_per_device": samples / world_size(),
            "peak_memory_gb": peak_memory(pl_module.device) / 1e9,
            "eta_hours": remaining / 3600,
            "data_wait_percent": 100 * (pl_module.data.waited - self.last_waited) / seconds,
        }
        if self.flops is not None and self.peak is not None:
            speed["mfu_percent"] = 100 * self.flops * samples / world_size() / self.peak
        self.last_time, self.last_step, self.last_waited = now, step, pl_module.data.waited
        return {f"speed/{key}": value for key, value in speed.items()}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Pretrainer, checkpoint: dict[str, Any]) -> None:
        self.write(trainer, pl_module)  # otherwise a run resumed from here would lack the last measured row

    def on_train_end(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        self.write(trainer, pl_module)
        self.line.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Pretrainer, exception: BaseException) -> None:
        self.line.close(exception)

    def teardown(self, trainer: pl.Trainer, pl_module: Pretrainer, stage: str) -> None:
        self.line.close()  # if no step remained, `on_train_end` was not called

    def write(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        """Log and show the last measured step, unless this has been done already."""
        if self.measured is None:
            return
        (step, late, known), self.measured = self.measured, None
        logged = {**late.read(), **known}
        log(trainer, logged, step)
        if is_main_process():
            self.line.show(step, pl_module.max_steps, logged)


def log(trainer: pl.Trainer, metrics: Mapping[str, float | int], step: int) -> None:
    """Send a step's metrics to all loggers."""
    send(trainer, step, lambda logger: logger.log_metrics(dict(metrics), step))


def send(trainer: pl.Trainer, step: int, to_logger: Callable[[Logger], None]) -> None:
    """Call `to_logger` for each logger; a logger that fails is dropped with a notice, except the CSV logger."""
    for logger in list(trainer.loggers):
        try:
            to_logger(logger)
        except CheckpointError:
            raise
        except Exception as error:
            trainer.loggers = [other for other in trainer.loggers if other is not logger]
            notice(f"logger {type(logger).__name__} failed at step {step} and is dropped: {error}")
