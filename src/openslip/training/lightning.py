"""Workarounds for Lightning, each with its reason; check this file when Lightning is upgraded.

Four conventions in other files also work around Lightning:
- `Pretrainer.step` counts batches, because `trainer.global_step` counts optimizer steps.
- `Pretrainer.max_steps` is the run's length, because reading `trainer.estimated_stepping_batches` builds the data
  loaders.
- Saves, evaluations and logs are scheduled by `Pretrainer.step`. After a resume in the middle of an epoch, Lightning's
  epochs begin and end at other steps.
- Callbacks annotate the fitted module as `Pretrainer`. Therefore pyright's rule on overrides is off in their files.
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
from openslip.progress import close
from openslip.terminal import notice

SWITCHED_OFF = {
    "max_epochs": -1,  # only `max_steps` ends a run
    "use_distributed_sampler": False,  # the data module distributes the global batch over ranks
    "num_sanity_val_steps": 0,  # evaluations do not use Lightning's validation loop
    "enable_checkpointing": False,  # the `save` callback writes checkpoints
    "enable_progress_bar": False,  # the `metrics` callback shows a status line
    "enable_model_summary": False,  # `openslip plan` prints a summary
}

NOISE = (  # warnings that require no action from a user of this framework
    ".*LeafSpec.*",
    "The `srun` command is available",  # shown on every SLURM login node
    ".*does not have many workers.*",
    "This DataLoader will create",
    r"Found \d+ module\(s\) in eval mode",  # expected with towers.*.locked
    ".*smaller than the logging interval",
    ".*resuming from a checkpoint that ended before the epoch",
)


def quiet_lightning() -> None:
    """Silence Lightning's messages that do not concern the run, and those of PyTorch's profiler."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler writes over the status line
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="pytorch_lightning")
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)


def ignore_foreign_checkpoints(trainer: pl.Trainer) -> None:
    """Prevent Lightning from loading the folder's hpc_ckpt_N.ckpt if a SLURM job has no checkpoint to resume from."""
    trainer._checkpoint_connector._user_managed = True


def leave_signals(trainer: pl.Trainer) -> None:
    """Turn off Lightning's signal handling; `openslip.signals` replaces it."""
    # Lightning's handlers communicate with the other ranks, which can deadlock inside a signal handler.
    trainer._signal_connector.register_signal_handlers = lambda: None
    # Lightning broadcasts a SIGTERM flag before every step, which synchronises with the device.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def wait_for_ranks(trainer: pl.Trainer, seconds: float) -> None:
    """Set how long ranks wait for one another.

    Lightning's default of half an hour remains the minimum for the process group that Lightning creates.
    """
    patience = wait_up_to(seconds)
    # `_timeout` is the timeout of the process group that Lightning will create.
    if (own := getattr(trainer.strategy, "_timeout", None)) is not None:
        trainer.strategy._timeout = max(own, patience)  # pyright: ignore[reportAttributeAccessIssue]


_launched: list[subprocess.Popen] = []


def adopt_ranks(trainer: pl.Trainer) -> None:
    """Take over the rank processes from Lightning, which would kill this process silently if a rank process ended."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        _launched.extend(launcher.procs)
        launcher.procs.clear()  # Lightning's observer looks at this list


def watch_launched_ranks(abandon: Callable[[], None]) -> None:
    """Replace Lightning's observer of the ranks that it starts.

    Lightning's observer would kill this process and hide the exit code of the rank that failed.

    Args:
        abandon: function to call if a rank fails before all ranks are connected. This process then exits with the exit
            code of that rank.
    """

    def watch(launched: list[subprocess.Popen]) -> None:
        while not (failed := [(rank, code) for rank, process in enumerate(launched, 1) if (code := process.poll())]):
            time.sleep(0.5)
            if not launched:  # the ranks are connected and watch each other
                return
        rank, code = failed[0]
        for process in launched:
            process.kill()
        abandon()
        close()
        if code < 0:  # a rank that was not killed has printed its own error
            notice(f"error: rank {rank}: killed by signal {-code} in its set-up")
        os._exit(128 - code if code < 0 else code)

    def start(launched: list[subprocess.Popen]) -> None:
        threading.Thread(target=watch, args=(launched,), name="launched ranks", daemon=True).start()

    setattr(subprocess_script, "_launch_process_observer", start)  # noqa: B010


def end_launched_ranks(trainer: pl.Trainer) -> None:
    """Wait for the rank processes that Lightning started; kill them first if this process has failed."""
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
            except Exception as error:  # any error is acceptable, because the metrics are in metrics.csv too
                notice(f"W&B was not finished: {error}")
