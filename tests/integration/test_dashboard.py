"""W&B's images and workspace, compared with what a run logs; the run is offline."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dashboard_panels
import numpy as np
import pytest
import pytorch_lightning as pl
import wandb
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from shard_files import write_pairs
from trainings import RUN, Training
from wandb.errors import CommError
from wandb.sdk.lib import RunDisabled
from wandb_files import history
from wandb_workspaces.workspaces import Workspace

from openslip.commands import dashboard
from openslip.errors import MissingPackage, UserError, run_entry_point
from openslip.evaluation.retrieval import WAYS
from openslip.training.logging.images import heat_map, log_views, verdicts

EVALUATION = """
builtin:
  _target_: openslip.evaluation.zeroshot.ZeroShot
  title: own
  source: {_target_: openslip.data.sources.shards.ShardSource, shards: 0.tar, require: label}
  classnames: NAMES
  templates: ["{}", "a {}."]
  batch_size: 50
  num_workers: 0
"""
SETTINGS = [
    *(word for word in RUN if not word.startswith(("evaluation=", "trainer.max_steps="))),
    *("evaluation=own", "trainer.max_steps=2", "optim.clip_norm=1", "callbacks.metrics.peak_tflops=1"),
    *("logger=wandb", "name=logged", "--config-dir=configs"),
]

DOCUMENTED = ("| Result |", "| Training |", "| Images |", "| Speed |", "| Data |")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that W&B logs."""
    place = tmp_path_factory.mktemp("logged")
    write_pairs(place / "0.tar", 100)
    (place / "configs" / "evaluation").mkdir(parents=True)
    names = json.dumps([f"name {number}" for number in range(100)])
    (place / "configs" / "evaluation" / "own.yaml").write_text(EVALUATION.replace("NAMES", names))
    training = Training(place, *SETTINGS, WANDB_MODE="offline", WANDB_SILENT="true")
    assert training.wait() == 0, training.said()
    return place / "runs" / "logged"


def rows(run: Path) -> list[dict[str, Any]]:
    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    return history(file)


def images(run: Path, key: str) -> tuple[np.ndarray, list[str]]:
    """The images [N, 3, H, W] that W&B keeps under a key, with their captions."""
    (row,) = (row for row in rows(run) if f"{key}/filenames" in row)
    (folder,) = run.glob("wandb/offline-run-*/files")
    pixels = np.stack([np.asarray(Image.open(folder / name)) for name in row[f"{key}/filenames"]])
    return pixels.transpose(0, 3, 1, 2), row[f"{key}/captions"]


def test_every_metric_of_a_run_is_in_the_workspace_except_the_number_of_samples(logged: Path):
    keys = {key for row in rows(logged) if not any("/_type" in key for key in row) for key in row}
    scalars = {key for key in keys if key.startswith(("train/", "eval/", "speed/", "data/"))}
    assert {key for key in scalars if not dashboard_panels.is_shown(key)} == {"eval/builtin/num_samples"}


def test_the_workspace_shows_the_terms_of_every_method():
    terms = ("loss", "clip_loss", "neighbour_loss", "masked_loss", "token_loss", "token_acc", "hard_acc")
    assert all(dashboard_panels.is_shown(f"train/{term}") for term in terms)
    assert not dashboard_panels.is_shown("train/lossless")


def test_the_workspace_names_only_keys_that_a_run_logs(logged: Path):
    keys = {key for row in rows(logged) for key in row}
    attributes = {f"eval/builtin/top1_{name}" for name in dashboard.ATTRIBUTES}  # tests/e2e/test_train.py
    assert dashboard_panels.metrics() - attributes <= keys
    assert {panel["config"].get("xAxis", "samples_seen") for panel in dashboard_panels.panels()} <= keys
    for shown, kind in ((dashboard_panels.media(), "images/separated"), (dashboard_panels.tables(), "table-file")):
        of_kind = {key.removesuffix("/_type") for row in rows(logged) for key in row if row[key] == kind}
        assert {key.replace("imagenet", "builtin") for key in shown} == of_kind
    retrieval = [f"eval/mine/{way}_recall_1" for way in WAYS]
    for pattern in dashboard_panels.patterns():
        assert any(map(pattern.search, [*keys, *retrieval])), pattern


def test_the_page_names_the_keys_of_every_panel_and_no_others():
    page = (Path(__file__).parents[2] / "docs" / "DASHBOARDS.md").read_text()
    table = [line.replace("\\|", "¦").split("|") for line in page.splitlines() if line.startswith(DOCUMENTED)]
    keys = {key.replace("¦", "|") for columns in table for key in re.findall(r"`([^`]+)`", columns[3])}
    patterns = {pattern.pattern for pattern in dashboard_panels.patterns()}
    assert keys == dashboard_panels.metrics() | dashboard_panels.media() | dashboard_panels.tables() | patterns


def test_views_are_logged_before_the_first_step_as_the_model_sees_them(logged: Path):
    arrays = np.load(logged / "arrays" / "views.npz")
    for view in ("image", "aug1", "aug2"):
        pixels, captions = images(logged, f"images/{view}")
        np.testing.assert_array_equal(pixels, arrays[view])
        assert captions == arrays["text"].tolist()
    assert [row["trainer/global_step"] for row in rows(logged) if "images/aug1/count" in row] == [0]


def test_the_similarity_matrix_is_logged_with_the_captions_of_its_columns(logged: Path):
    arrays = np.load(logged / "arrays" / "similarity.npz")
    (pixels,), (caption,) = images(logged, "images/similarity")
    np.testing.assert_array_equal(pixels.transpose(1, 2, 0), heat_map(arrays["matrix"]))
    assert caption.splitlines() == [f"{number}: {text}" for number, text in enumerate(arrays["captions"], 1)]


def test_the_heat_map_draws_rows_downwards_and_columns_to_the_right():
    matrix = np.zeros((2, 2), np.float32)
    matrix[0, 1] = 1  # the yellow end of the scale
    yellow = (heat_map(matrix).astype(int) @ [1, 1, -2]) > 250
    rows_of_it, columns_of_it = np.nonzero(yellow[:, : int(0.75 * yellow.shape[1])])  # without the colour scale
    assert rows_of_it.mean() < 0.5 * yellow.shape[0]
    assert columns_of_it.mean() > 0.4 * yellow.shape[1]


def test_predictions_are_logged_as_images_with_their_verdicts(logged: Path):
    arrays = dict(np.load(logged / "arrays" / "builtin.npz"))
    pixels, captions = images(logged, "eval/builtin/images")
    np.testing.assert_array_equal(pixels, arrays["images"])
    assert captions == verdicts(arrays)


def test_a_verdict_names_the_label_only_where_the_prediction_is_wrong():
    arrays = {
        "classnames": np.array(["ant", "bee"]),
        "image_indices": np.array([0, 2]),
        "labels": np.array([1, 0, 0]),
        "predictions": np.array([1, 0, 1]),
        "top_probabilities": np.array([[0.9, 0.1], [0.8, 0.2], [0.604, 0.396]]),
    }
    assert verdicts(arrays) == ["right: bee (90%)", "wrong: bee (60%), label ant"]


def test_images_that_cannot_be_stored_cost_only_the_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    logger = WandbLogger(experiment=RunDisabled())
    trainer = pl.Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False)

    def fail(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("no such folder")

    monkeypatch.setattr(logger, "log_image", fail)
    log_views(trainer, {"image": np.zeros((1, 3, 4, 4), np.uint8)}, ["a"], 0)
    assert trainer.loggers == [logger]
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "W&B: images/image was not logged at step 0: no such folder"


def test_the_command_saves_the_workspace_in_the_project_and_prints_its_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    saved = []
    monkeypatch.setattr(Workspace, "save", lambda self: saved.append(self) or self)
    monkeypatch.setattr(Workspace, "url", property(lambda self: f"https://wandb.ai/{self.entity}/{self.project}?nw=1"))
    assert dashboard.main(["--project", "mine", "--entity", "me"]) == 0
    assert capsys.readouterr().out == "https://wandb.ai/me/mine?nw=1\n"
    assert [part.name for part in saved[0].sections] == ["Result", "Training", "Images", "Speed", "Data"]


def test_an_account_without_an_entity_is_asked_for_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(default_entity=None))
    with pytest.raises(UserError, match="add --entity NAME"):
        dashboard.main(["--project", "mine"])


def test_an_error_of_the_server_names_the_login(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def refuse(_: Workspace) -> None:
        raise CommError("permission denied\nmore")

    monkeypatch.setattr(Workspace, "save", refuse)
    assert run_entry_point(dashboard.main, ["--project", "mine", "--entity", "me"]) == 1
    said = capsys.readouterr().err
    assert "no workspace in mine (permission denied): run `wandb login`, and check --project and --entity" in said


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(MissingPackage, match=r'pip install "openslip\[wandb\]"'):
        dashboard.main(["--project", "mine"])
