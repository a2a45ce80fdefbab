"""What works around Lightning, each with its reason; an upgrade of Lightning is checked against this file.

Three habits belong to it: `Pretrainer.step` counts batches, because `trainer.global_step` counts optimizer steps.
`Pretrainer.max_steps` is the run's length, because `trainer.estimated_stepping_batches` builds the data loaders to tell
it. All that is due at a step is due by that count, because after a resume in the middle of an epoch Lightning's epochs
and their hooks come at other times. Callbacks annotate the fitted module as `Pretrainer`, for which pyright's rule on
overrides is off in their files.
"""

import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher, subprocess_script

from openslip.distributed import wait_up_to
from openslip.terminal import notice

SWITCHED_OFF = {
    "max_epochs": -1,  # `max_steps` alone ends a run
    "use_distributed_sampler": False,  # the data module cuts the global batch itself
    "num_sanity_val_steps": 0,  # evaluations are no validation loop
    "enable_checkpointing": False,  # the `save` callback writes checkpoints
    "enable_progress_bar": False,  # the `metrics` callback shows a status line
    "enable_model_summary": False,  # `openslip plan` prints one
}

NOISE = (  # notes about devices, products and its own deprecations
    ".*LeafSpec.*",
    "The `srun` command is available",  # on every login node
    ".*does not have many workers.*",
    "This DataLoader will create",
    r"Found \d+ module\(s\) in eval mode",  # towers.*.locked
    ".*smaller than the logging interval",
    ".*resuming from a checkpoint that ended before the epoch",
)


def quiet_lightning() -> None:
    """Silence what is not about the run."""
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="pytorch_lightning")
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)


def ignore_foreign_checkpoints(trainer: pl.Trainer) -> None:
    """Without a checkpoint to resume from, Lightning would load a hpc_ckpt_N.ckpt of the folder in a SLURM job."""
    trainer._checkpoint_connector._user_managed = True


def leave_signals(trainer: pl.Trainer) -> None:
    """Leave signals to `openslip.signals`."""
    # Its handlers talk to the other ranks inside the handler, which can wait for ever.
    trainer._signal_connector.register_signal_handlers = lambda: None
    # It broadcasts a flag of its own before every step, for which the device is synchronised.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def wait_for_ranks(trainer: pl.Trainer, seconds: float) -> None:
    """Let the ranks of a run wait so long for one another, where Lightning would end them after half an hour."""
    patience = wait_up_to(seconds)
    if (own := getattr(trainer.strategy, "_timeout", None)) is not None:  # that of the process group it will make
        trainer.strategy._timeout = max(own, patience)  # pyright: ignore[reportAttributeAccessIssue]


_launched: list[subprocess.Popen] = []


def adopt_ranks(trainer: pl.Trainer) -> None:
    """Take the ranks that Lightning started away from it: it kills this process without a word if one of them ends."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        _launched.extend(launcher.procs)
        launcher.procs.clear()  # its observer looks at this list


def watch_launched_ranks(abandon: Callable[[], None]) -> None:
    """Replace Lightning's watch over the ranks that it starts: it kills this process and hides their exit code.

    Args:
        abandon: called before this process ends with the exit code of a rank that failed before all ranks have met.
    """

    def watch(launched: list[subprocess.Popen]) -> None:
        while not (failed := [(rank, code) for rank, process in enumerate(launched, 1) if (code := process.poll())]):
            time.sleep(0.5)
            if not launched:  # the ranks have met and watch each other
                return
        rank, code = failed[0]
        for process in launched:
            process.kill()
        abandon()
        if code < 0:  # else it has said why
            notice(f"error: rank {rank}: killed by signal {-code} in its set-up", below=True)
        os._exit(128 - code if code < 0 else code)

    def start(launched: list[subprocess.Popen]) -> None:
        threading.Thread(target=watch, args=(launched,), name="launched ranks", daemon=True).start()

    setattr(subprocess_script, "_launch_process_observer", start)  # noqa: B010


def end_launched_ranks(trainer: pl.Trainer) -> None:
    """Wait for the ranks that Lightning started; after an error, end them."""
    adopt_ranks(trainer)
    failed = sys.exc_info()[0] is not None
    for process in _launched:
        if failed:
            process.kill()
        process.wait()


def finish_wandb(trainer: pl.Trainer) -> None:
    """Finish W&B's run: Lightning leaves it open until the process ends, and a later run would log into it."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            try:
                logger.experiment.finish()
            except Exception as error:  # of whatever kind: the metrics are in metrics.csv
                notice(f"W&B was not finished: {error}")
