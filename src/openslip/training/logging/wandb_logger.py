"""Weights & Biases logger with `samples_seen` as x-axis; if the server is unreachable, the run continues offline."""

import os
import re

from pytorch_lightning.loggers import WandbLogger

from openslip.errors import MissingPackage
from openslip.terminal import mention, notice

try:
    import wandb
except ModuleNotFoundError as error:
    raise MissingPackage('logger=wandb needs wandb; pip install "openslip[wandb]"') from error


def wandb_logger(*, project: str, name: str, version: str, save_dir: str, timeout: float) -> WandbLogger:
    """Start a logger; if the server does not answer, log offline and print the command that uploads the run later.

    Args:
        project: name of the W&B project.
        name: name of the run.
        version: id by which W&B resumes the same run.
        save_dir: the run's folder.
        timeout: longest wait for the server in seconds, at the start and again for the last upload at the end.
    """
    # At exit, W&B reports its own errors. It would wait 20 s for a server that accepts a connection but never answers.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    common = {"project": project, "name": name, "version": valid_id(version), "save_dir": save_dir}
    # Unless `quiet` is set, W&B first asks the server for the user's name. This can take up to ten seconds, in
    # addition to `init_timeout`.
    settings = wandb.Settings(init_timeout=timeout, finish_timeout=timeout, quiet=True)
    logger = WandbLogger(**common, settings=settings)  # pyright: ignore[reportArgumentType]
    try:
        experiment = logger.experiment
        if isinstance(experiment, wandb.Run) and experiment.url:  # a dummy on ranks other than 0
            mention(f"W&B: {experiment.url}")
    except Exception as error:  # several types, some of them private to W&B; no error may stop the run
        wandb.teardown()  # W&B's background service still holds the run's id
        settings = wandb.Settings(mode="offline")
        logger = WandbLogger(**common, settings=settings)  # pyright: ignore[reportArgumentType]
        experiment = logger.experiment
        reason = (str(error) or type(error).__name__).splitlines()[0]
        notice(f"W&B is offline ({reason}); upload the run later: wandb sync {experiment.settings.sync_dir}")
    # Runs with different batch sizes are compared by samples seen. By default, Lightning uses its own step as x-axis.
    experiment.define_metric("samples_seen")
    experiment.define_metric("*", step_metric="samples_seen", step_sync=True)
    return logger


def valid_id(version: str) -> str:
    """Replace the characters that a run's name may contain, but that W&B refuses in an id."""
    return re.sub(r"[:;,#?/'\s]", "-", version)
