"""Logger of Trackio, a dashboard by Hugging Face that needs no account: runs are in a local SQLite database."""

# pyright: reportIncompatibleMethodOverride=false

import sys
from contextlib import redirect_stdout
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from openslip.errors import MissingPackage, first_line
from openslip.run.identity import flat
from openslip.terminal import notice

try:
    import trackio
    from trackio.run import Run
except ModuleNotFoundError as error:
    raise MissingPackage('logger=trackio needs trackio; pip install "openslip[trackio]"') from error


class TrackioLogger(Logger):
    """Logs to a run of Trackio; a resumed run continues it.

    Args:
        project: name of the Trackio project.
        version: name of the run in Trackio, which resumes runs by name.
        save_dir: the run's folder; not used, because Trackio keeps all runs of a project in one database.
    """

    def __init__(self, *, project: str, version: str, save_dir: str) -> None:
        super().__init__()
        self.project = project
        self.run_name = version
        self.run: Run | None = None

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Run:
        """The run, which starts when it is first read."""
        if self.run is None:
            with redirect_stdout(sys.stderr):  # stdout is for results
                self.run = trackio.init(self.project, name=self.run_name, resume="allow", embed=False)
        return self.run

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.experiment.config.update(flat(params))  # stored with the next metrics

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Store the metrics that are still in memory, and end the thread that stores them."""
        if self.run is not None:
            try:
                with redirect_stdout(sys.stderr):
                    trackio.finish()
            except Exception as error:  # several types of error: no error of a logger may end a run
                notice(f"Trackio: the run was not closed: {first_line(error)}")
            self.run = None
