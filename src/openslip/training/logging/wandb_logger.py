"""Weights & Biases with `samples_seen` as x-axis; an unreachable server costs seconds, not the run."""

import os
import re

import wandb
from pytorch_lightning.loggers import WandbLogger

from openslip.terminal import notice


def wandb_logger(*, project: str, name: str, version: str, save_dir: str, timeout: float) -> WandbLogger:
    """Start a logger, offline if the server does not answer, with the command that uploads the run later.

    Args:
        project: name of the workspace.
        name: of the run.
        version: its id, by which the same run is resumed.
        save_dir: the run's folder.
        timeout: seconds that the start, and the last upload at the end, may wait for the server.
    """
    # W&B reports its own errors when the process ends, and would wait 20 s for a server that accepts and never answers.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    common = {"project": project, "name": name, "version": valid_id(version), "save_dir": save_dir}
    # Unless quiet, the start first asks for the user's name, ten seconds of its own that `init_timeout` does not end.
    settings = wandb.Settings(init_timeout=timeout, finish_timeout=timeout, quiet=True)
    logger = WandbLogger(**common, settings=settings)  # pyright: ignore[reportArgumentType]
    try:
        experiment = logger.experiment
        if isinstance(experiment, wandb.Run) and experiment.url:  # other ranks than the first have a stand-in
            notice(f"W&B: {experiment.url}")
    except Exception as error:  # of several kinds, some of them private; the run depends on none
        wandb.teardown()  # its service still holds the run's id
        settings = wandb.Settings(mode="offline")
        logger = WandbLogger(**common, settings=settings)  # pyright: ignore[reportArgumentType]
        experiment = logger.experiment
        reason = (str(error) or type(error).__name__).splitlines()[0]
        notice(f"W&B is offline ({reason}): later, wandb sync {experiment.settings.sync_dir}")
    # Runs with different batch sizes compare by what they have seen; Lightning's axis is its own step.
    experiment.define_metric("samples_seen")
    experiment.define_metric("*", step_metric="samples_seen", step_sync=True)
    return logger


def valid_id(version: str) -> str:
    """An id without the characters that W&B refuses, which a run's name may have."""
    return re.sub(r"[:;,#?/'\s]", "-", version)
