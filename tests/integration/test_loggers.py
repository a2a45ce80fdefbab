"""Trackio and MLflow with their local stores: a run that was stopped, resumed and made longer."""

import csv
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.loggers.logger import DummyLogger
from shard_files import write_pairs
from trainings import RUN, Training

import openslip.training.logging
from openslip.commands.train import start_loggers
from openslip.config.compose import compose_config
from openslip.errors import MissingPackage
from openslip.run.folder import Run
from openslip.run.identity import with_format
from openslip.training.logging import mlflow_logger

SETTINGS = [
    *(word for word in RUN if not word.startswith("trainer.max_steps=")),
    *("logger=both", "name=logged", "--config-dir=configs"),
]
BOTH = "defaults: [trackio, mlflow]\nmlflow: {tracking_uri: 'PLACE'}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was stopped after step 5 of 8, and then resumed with a length of 10 steps."""
    place = tmp_path_factory.mktemp("logged")
    write_pairs(place / "0.tar", 100)
    (place / "configs" / "logger").mkdir(parents=True)
    (place / "configs" / "logger" / "both.yaml").write_text(BOTH.replace("PLACE", f"file://{place}/mlflow"))
    environment = {
        **{"TRACKIO_DIR": str(place / "trackio"), "MLFLOW_ALLOW_FILE_STORE": "true"},
        **{"MLFLOW_TRACKING_PASSWORD": "secret-2", "HF_TOKEN": "secret-3", "HF_HUB_OFFLINE": "1"},
    }
    stopped = Training(place, *SETTINGS, "trainer.max_steps=8", DISTURB="signal 5 0", **environment)
    assert stopped.wait() == 143, stopped.said()
    resumed = Training(place, *SETTINGS, "trainer.max_steps=10", **environment)
    assert resumed.wait() == 0, resumed.said()
    assert "is skipped" not in resumed.said()
    return place


@pytest.fixture(scope="module")
def losses(place: Path) -> dict[int, float]:
    """The losses in metrics.csv by step."""
    with (place / "runs" / "logged" / "metrics.csv").open() as file:
        losses = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file)}
    assert list(losses) == list(range(1, 11))
    return losses


def test_trackio_continues_its_run_with_every_step_once(place: Path, losses: dict[int, float]):
    with sqlite3.connect(place / "trackio" / "openslip.db") as database:
        rows = database.execute("select run_id, run_name, step, metrics from metrics order by id").fetchall()
        ((config,),) = database.execute("select config from configs").fetchall()
    assert len({row[0] for row in rows}) == 1
    assert {row[1] for row in rows} == {(place / "runs" / "logged" / "id.txt").read_text().strip()}
    metrics = {step: json.loads(text) for _, _, step, text in rows}
    assert [row[2] for row in rows] == list(losses)
    assert {step: row["train/loss"] for step, row in metrics.items()} == pytest.approx(losses)
    assert [row["samples_seen"] for row in metrics.values()] == [16 * step for step in losses]
    assert json.loads(config)["trainer.max_steps"] == 10


def test_mlflow_continues_its_run_with_every_step_once(place: Path, losses: dict[int, float], file_store: None):
    client = MlflowClient(f"file://{place}/mlflow")
    experiment = client.get_experiment_by_name("openslip")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("logged", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(losses)
    assert {metric.step: metric.value for metric in history} == pytest.approx(losses)
    # MLflow changes no parameter: the length is that of the first start.
    assert (run.data.params["optim.lr"], run.data.params["trainer.max_steps"]) == ("0.0008", "8")


def test_stdout_has_only_results_and_no_file_has_credentials(place: Path):
    lines = (place / "log").read_text().splitlines()  # stdout and stderr, which ends with the next commands
    assert lines[-5:] == [
        "report: runs/logged",
        "next commands:",
        '  openslip predict IMAGE --checkpoint runs/logged --labels "a cat,a dog"',
        "  openslip eval checkpoint=runs/logged evaluation=NAME",
        "  openslip report runs/logged",
    ]
    for file in place.rglob("*"):
        assert not file.is_file() or b"secret-" not in file.read_bytes(), file


@pytest.fixture
def file_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLflow use files, which it refuses by default; they are created faster than its database."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def start(tmp_path: Path, tracking_uri: str | None, name: str = "it's") -> MLFlowLogger:
    logger = mlflow_logger.mlflow_logger(
        project="p", name=name, version=f"{name}-0a1b2c", tracking_uri=tracking_uri, save_dir=str(tmp_path / name)
    )
    assert isinstance(logger, MLFlowLogger)
    logger.log_hyperparams({"a": {"b": 1}})
    return logger


def test_another_run_has_its_own_mlflow_run(tmp_path: Path, file_store: None):
    uri = f"file://{tmp_path}/mlflow"
    first, second, again = (start(tmp_path, uri, name) for name in ("it's", "other", "it's"))
    assert first.run_id == again.run_id != second.run_id


def test_a_resumed_mlflow_run_is_running_again(tmp_path: Path, file_store: None):
    uri = f"file://{tmp_path}/mlflow"
    start(tmp_path, uri).finalize("failed")
    logger = start(tmp_path, uri)
    assert logger.run_id is not None
    assert logger.experiment.get_run(logger.run_id).info.status == "RUNNING"


def test_a_server_that_fails_at_the_end_of_the_run_is_only_reported(
    tmp_path: Path, file_store: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    logger = start(tmp_path, f"file://{tmp_path}/mlflow")

    def fail(*_: Any) -> None:
        raise ConnectionError("no answer\nmore")

    monkeypatch.setattr(logger.experiment, "set_terminated", fail)
    logger.finalize("success")
    assert capsys.readouterr().err.splitlines()[-1] == "MLflow: the run was not ended: no answer"


@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")  # MLflow's use of SQLAlchemy
@pytest.mark.slow  # MLflow creates a database in some seconds
def test_without_a_server_mlflow_stores_runs_in_a_database_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlflow_logger, "SERVER", None)
    first = start(tmp_path, None)
    first.log_metrics({"train/loss": float("nan"), "samples_seen": 4}, 2)
    assert (tmp_path / "mlflow.db").exists()
    second = start(tmp_path, None)
    assert second.run_id == first.run_id
    assert second.run_id is not None
    ((step, value),) = [(x.step, x.value) for x in second.experiment.get_metric_history(second.run_id, "samples_seen")]
    assert (step, value) == (2, 4)


def test_the_environment_names_the_server_and_its_password_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clients, loggers = [], []
    monkeypatch.setattr(mlflow_logger, "SERVER", "https://me:secret@host:5000")
    monkeypatch.setattr(mlflow_logger, "MlflowClient", clients.append)
    monkeypatch.setattr(mlflow_logger, "former_run", lambda *_: "former")
    monkeypatch.setattr(mlflow_logger, "ResumableLogger", lambda **given: loggers.append(given) or DummyLogger())
    mlflow_logger.mlflow_logger(project="p", name="n", version="n-1", tracking_uri=None, save_dir=str(tmp_path))
    assert clients == ["https://me:secret@host:5000"]
    assert (loggers[0]["tracking_uri"], loggers[0]["run_id"]) == (clients[0], "former")
    assert capsys.readouterr().err == "MLflow: https://host:5000\n"


def test_only_the_first_rank_opens_mlflows_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mlflow_logger, "is_main_process", lambda: False)
    logger = mlflow_logger.mlflow_logger(
        project="p", name="n", version="n-1", tracking_uri=f"file://{tmp_path}/mlflow", save_dir=str(tmp_path / "n")
    )
    logger.log_metrics({"train/loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


def test_the_stored_config_has_no_password_of_a_tracking_server():
    logger = {"mlflow": {"tracking_uri": "https://me:secret@host:5000"}}
    assert with_format({"logger": logger})["logger"] == {"mlflow": {"tracking_uri": "https://host:5000"}}


@pytest.mark.parametrize(
    ("name", "package", "target"),
    [
        ("wandb", "wandb", "wandb_logger.wandb_logger"),
        ("trackio", "trackio", "trackio_logger.TrackioLogger"),
        ("mlflow", "mlflow.tracking", "mlflow_logger.mlflow_logger"),
    ],
)
def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, target: str
):
    module = target.partition(".")[0]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"openslip.training.logging.{module}", raising=False)
    monkeypatch.delattr(openslip.training.logging, module, raising=False)
    config, _ = compose_config("train", [f"logger={name}"])
    assert config["logger"][name]["_target_"] == f"openslip.training.logging.{target}"
    with pytest.raises(MissingPackage, match=rf'logger={name} needs {name}; pip install "openslip\[{name}\]"'):
        start_loggers(config, Run(tmp_path, "new"))
