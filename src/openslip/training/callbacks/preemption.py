"""A run that is asked to stop saves between two steps, and is requeued where a scheduler asked."""

# pyright: reportIncompatibleMethodOverride=false

import sys
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
from openslip.training.callbacks.save import end_save, save
from openslip.training.lightning import adopt_ranks, finish_wandb, leave_signals
from openslip.training.pretrainer import Pretrainer

NOW = 1e-6  # seconds: zero would stop the timer


class Preemption(pl.Callback):
    """All ranks agree before a step, or after the last one, save, and leave with exit code 143.

    What else would make Lightning leave before the last step counts as a signal: the run is not finished.

    Args:
        max_time: after which a process stops, from its first step on: DD:HH:MM:SS, `timedelta`'s arguments, or None.
    """

    def __init__(self, *, max_time: Any) -> None:
        self.asked_by = "trainer.should_stop, which a callback has set"
        self.seconds: float | None = None
        if max_time is not None:
            self.asked_by = f"trainer.max_time={max_time}"
            try:
                self.seconds = Timer(max_time).time_remaining()
            except (MisconfigurationException, TypeError, AttributeError):  # the last of a number
                self.seconds = None
            if self.seconds is None or self.seconds <= 0:  # zero would set no alarm
                raise UserError(f"{self.asked_by}: expected DD:HH:MM:SS, e.g. trainer.max_time=00:12:00:00")

    def setup(self, trainer: pl.Trainer, pl_module: Pretrainer, stage: str) -> None:
        leave_signals(trainer)
        adopt_ranks(trainer)
        ranks.meet()
        # Here, where all ranks have met, because a resumed run may evaluate in every callback's next hook.
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
        # Before all other steps the ranks agree where they fetch its batch, which may be what a signal finds them at.
        if pl_module.step == pl_module.max_steps and any_rank(signals.received() is not None):
            raise signals.Preempted

    def on_train_end(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        if pl_module.step < pl_module.max_steps:
            raise signals.Preempted

    def on_exception(self, trainer: pl.Trainer, pl_module: Pretrainer, exception: BaseException) -> None:
        """Save here and not where `Preempted` is raised, because an evaluation may be where the ranks agree."""
        if not isinstance(exception, signals.Preempted):
            return
        end_save(trainer)
        steps = [0, *(checkpoint.step for checkpoint in saved(Path(trainer.default_root_dir) / "checkpoints"))]
        if from_first_rank(pl_module.step not in steps):
            save(trainer, pl_module)
        received = next((number for number in of_all_ranks(signals.received()) if number), None)
        if is_main_process():
            asked_by = received.name if received and received in signals.STOPPING else self.asked_by
            ended = f"after step {pl_module.step}, saved; the same command resumes it"
            ended = ended if pl_module.step else "before the first step; the same command starts it anew"
            sys.stderr.write(f"\nstopped by {asked_by} {ended}\n")
            sys.stderr.flush()
            finish_wandb(trainer)  # under SLURM the job ends with the next call
            slurm.requeue(received)
        from_first_rank(None)  # whoever leaves earlier makes launchers kill the first rank
