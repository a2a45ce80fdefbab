"""Logger of MLflow, to a local SQLite database or to a server; a resumed run continues its MLflow run."""

# pyright: reportIncompatibleMethodOverride=false

import os
import re
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger
from pytorch_lightning.loggers.logger import DummyLogger

from openslip.data.remote.address import shown
from openslip.distributed import is_main_process
from openslip.errors import MissingPackage, first_line
from openslip.run.identity import flat
from openslip.terminal import notice

for variable, value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # else the import starts a thread that reports the use of MLflow to its makers
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; MLflow's defaults let a step wait minutes for a silent server
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}.items():
    os.environ.setdefault(variable, value)
try:
    from mlflow.tracking import MlflowClient
except ModuleNotFoundError as error:
    raise MissingPackage('logger=mlflow needs mlflow; pip install "openslip[mlflow]"') from error

SERVER = os.environ.get("MLFLOW_TRACKING_URI")  # MLflow later overwrites the variable with the address of a run
ID = "openslip.id"  # tag by which a resumed run finds its MLflow run


class ResumableLogger(MLFlowLogger):
    """Lightning's logger for an MLflow run that an earlier start may have begun."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Log the config with dotted keys; MLflow refuses to change a parameter, so only new ones are logged."""
        assert self.run_id is not None
        known = self.experiment.get_run(self.run_id).data.params
        super().log_hyperparams({key: value for key, value in flat(params).items() if key not in known})

    def finalize(self, status: str = "success") -> None:
        """End the MLflow run; an error of the server does not end the training."""
        try:
            super().finalize(status)
        except Exception as error:
            notice(f"MLflow: the run was not ended: {first_line(error)}")


def mlflow_logger(*, project: str, name: str, version: str, tracking_uri: str | None, save_dir: str) -> Logger:
    """Start a logger that continues the MLflow run of an earlier start, if there is one.

    Args:
        project: name of the MLflow experiment.
        name: name of the run.
        version: id by which a resumed run finds its MLflow run.
        tracking_uri: database or server; None for `MLFLOW_TRACKING_URI` of the environment, else `mlflow.db` beside the
            run's folder.
        save_dir: the run's folder.
    """
    if not is_main_process():  # a client of MLflow would create the database, at the same time as the main process
        return DummyLogger()
    local = f"sqlite:///{Path(save_dir).absolute().parent / 'mlflow.db'}"
    uri = tracking_uri or SERVER or local
    notice(f"MLflow: {shown(uri)}")
    identifier = re.sub(r"[^\w.-]", "-", version)  # a quotation mark would end the text in the query
    former = former_run(MlflowClient(uri), project, identifier)
    return ResumableLogger(
        experiment_name=project, run_name=name, tracking_uri=uri, tags={ID: identifier}, run_id=former
    )


def former_run(client: MlflowClient, project: str, identifier: str) -> str | None:
    """Find the MLflow run of an earlier start and mark it as running; return its id, or None if there is none."""
    experiment = client.get_experiment_by_name(project)
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{ID}` = '{identifier}'", max_results=1)
    if not runs:
        return None
    run_id = runs[0].info.run_id
    client.update_run(run_id, status="RUNNING")
    return run_id
