"""Saves between two steps when the run must stop, and requeues the job if the scheduler sent the signal."""

# pyright: reportIncompatibleMethodOverride=false

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Timer

from openslip import signals, slurm
from openslip.distributed import any_rank, from_first_rank, is_main_process, of_all_ranks
from openslip.errors import UserError
from openslip.run import ranks
from openslip.run.checkpoints import saved
from openslip.terminal import notice
from openslip.training.callbacks.save import end_save, save
from openslip.training.lightning import adopt_ranks, finish_wandb, leave_signals
from openslip.training.logging.metrics import send
from openslip.training.pretrainer import Pretrainer

NOW = 1e-6  # seconds: zero would stop the timer


class Preemption(pl.Callback):
    """Makes all ranks agree to stop between two steps or after the last step, save, and exit with code 143.

    Anything else that makes Lightning stop before the last step is treated like a signal, because the run is not
    finished.

    Args:
        max_time: time limit of this process, counted from its first step. It is DD:HH:MM:SS, a dict of arguments of
            `timedelta`, or None for no limit.
        advice: how to resume the run, for the message at its end.
    """

    def __init__(self, *, max_time: Any, advice: str = "the same command resumes it") -> None:
        self.advice = advice
        self.asked_by = "a callback (trainer.should_stop)"
        self.seconds: float | None = None
        if max_time is not None:
            self.asked_by = f"trainer.max_time={max_time}"
            try:
                self.seconds = Timer(max_time).time_remaining()
            except (MisconfigurationException, TypeError, AttributeError):  # AttributeError for a number
                self.seconds = None
            if self.seconds is None or self.seconds <= 0:  # zero seconds would set no alarm
                raise UserError(f"{self.asked_by}: expected DD:HH:MM:SS, e.g. trainer.max_time=00:12:00:00")

    def setup(self, trainer: pl.Trainer, pl_module: Pretrainer, stage: str) -> None:
        leave_signals(trainer)
        adopt_ranks(trainer)
        ranks.meet()
        # Signals are deferred as soon as all ranks are connected. A later hook would be too late, because a resumed run
        # may already run evaluations in a later hook.
        signals.defer()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        if self.seconds is not None:
            signals.stop_after(self.seconds)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.should_stop and pl_module.step < pl_module.max_steps:
            trainer.should_stop = False
            signals.stop_after(NOW)
        # After all steps but the last, the ranks make this decision while they wait for the next batch: a signal may
        # arrive then.
        if pl_module.step == pl_module.max_steps and any_rank(signals.received() is not None):
            raise signals.Preempted

    def on_train_end(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        if pl_module.step < pl_module.max_steps:
            raise signals.Preempted

    def on_exception(self, trainer: pl.Trainer, pl_module: Pretrainer, exception: BaseException) -> None:
        """Save when `Preempted` ends the run: after a step, while a batch is fetched, or in an evaluation."""
        if not isinstance(exception, signals.Preempted):
            return
        end_save(trainer)
        steps = [0, *(checkpoint.step for checkpoint in saved(Path(trainer.default_root_dir) / "checkpoints"))]
        if from_first_rank(pl_module.step not in steps):
            save(trainer, pl_module)
        received = next((number for number in of_all_ranks(signals.received()) if number), None)
        if is_main_process():
            asked_by = received.name if received and received in signals.STOPPING else self.asked_by
            ended = f"after step {pl_module.step}, saved; {self.advice}"
            ended = ended if pl_module.step else "before the first step; the same command restarts it"
            notice(f"stopped by {asked_by} {ended}")
            # The loggers are finalised here, because requeueing ends the job under SLURM. Lightning would do it later.
            finish_wandb(trainer)
            send(trainer, pl_module.step, lambda logger: logger.finalize("failed"))
            slurm.requeue(received)
        from_first_rank(None)  # wait, because a rank that exits earlier makes launchers kill rank 0
