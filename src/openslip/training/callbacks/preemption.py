"""A run that is asked to stop saves between two steps, and is requeued where a scheduler asked."""

# pyright: reportIncompatibleMethodOverride=false

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from openslip import signals, slurm
from openslip.distributed import any_rank, from_first_rank, is_main_process, of_all_ranks
from openslip.run.checkpoints import saved
from openslip.training.callbacks.save import save
from openslip.training.lightning import finish_wandb, leave_signals
from openslip.training.pretrainer import Pretrainer


class Preemption(pl.Callback):
    """All ranks agree at the end of a step, save, and leave with exit code 143."""

    def setup(self, trainer: pl.Trainer, pl_module: Pretrainer, stage: str) -> None:
        leave_signals(trainer)
        # Here, where all ranks have met, because a resumed run may evaluate in every callback's next hook.
        signals.defer()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if any_rank(signals.received() is not None):
            raise signals.Preempted

    def on_exception(self, trainer: pl.Trainer, pl_module: Pretrainer, exception: BaseException) -> None:
        """Save here and not where `Preempted` is raised, because an evaluation may be where the ranks agree."""
        if not isinstance(exception, signals.Preempted):
            return
        steps = [checkpoint.step for checkpoint in saved(Path(trainer.default_root_dir) / "checkpoints")]
        if from_first_rank(pl_module.step not in steps):
            save(trainer, pl_module)
        received = next((number for number in of_all_ranks(signals.received()) if number), None)
        if is_main_process():
            name = received.name if received else "a signal"
            sys.stderr.write(f"\nstopped by {name} after step {pl_module.step}, saved; the same command resumes it\n")
            sys.stderr.flush()
            finish_wandb(trainer)  # under SLURM the job ends with the next call
            slurm.requeue(received)
        from_first_rank(None)  # whoever leaves earlier makes launchers kill the first rank
