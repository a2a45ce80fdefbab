"""What finds no room names its file, the reason and the free space; what is cosmetic costs nothing else."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_models import bundle, image_encoder
from shard_files import write_pairs
from small_disk import fill, remount, tmpfs  # noqa: F401

from openslip.__main__ import run as openslip
from openslip.arrays import write_arrays
from openslip.commands import eval as evaluate
from openslip.data.bad_samples import BadSample, BadSamples
from openslip.data.convert.manifest import Manifest
from openslip.data.sources.shards import ShardSource
from openslip.durable import refuse_unwritable
from openslip.errors import CheckpointError, UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.inference.bundle import Bundle
from openslip.report import write_report
from openslip.run.folder import Run
from openslip.training.logging.csv_logger import CsvLogger
from openslip.training.sizing.micro_batch_size import MicroBatchSize

NO_ROOM = r"could not be written \(No space left on device; 0\.0 MB free\)"


def record_bad_samples(folder: Path) -> None:
    samples = BadSamples(folder / "bad_samples.jsonl", rank=0, budget=0.1, samples_per_epoch=10)
    samples.record(0, 0, [BadSample(0, "k" * 100_000, "r", "s")])


def keep_size(folder: Path) -> None:
    MicroBatchSize("auto", file=folder / "micro_batch_size.json", longest=lambda _: {}).keep(1, 2, "x" * 100_000)


def begin(folder: Path) -> None:
    Run(folder, "new").begin({"seed": 0, "name": "x" * 100_000}, {})


OWN_FILES = {
    "result.json": lambda folder: Run(folder, "unfinished").finish({"lines": ["x" * 100_000]}),
    "metrics.csv": lambda folder: CsvLogger(folder / "metrics.csv").log_metrics({"x" * 100_000: 1.0}, 1),
    "report.html": write_report,
    "bad_samples.jsonl": record_bad_samples,
    "micro_batch_size.json": keep_size,
    "env.json": begin,
    "id.txt": lambda folder: Run(folder, "new").identifier(),
}


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_file_of_a_run_that_finds_no_room_is_named_with_exit_code_5(tmpfs: Path, name: str):  # noqa: F811
    (tmpfs / "config.yaml").write_text("seed: 3\n")
    fill(tmpfs)
    with pytest.raises(CheckpointError, match=rf"{tmpfs}/{name} {NO_ROOM}: make room") as error:
        OWN_FILES[name](tmpfs)
    assert error.value.exit_code == 5
    assert not list(tmpfs.glob(".*.tmp"))


def test_arrays_that_find_no_room_are_a_line(tmpfs: Path, capsys: pytest.CaptureFixture[str]):  # noqa: F811
    fill(tmpfs)
    write_arrays(tmpfs / "views.npz", {"a": np.random.default_rng(0).random(100_000)})
    assert f"WARNING: {tmpfs}/views.npz could not be written (No space left on device" in capsys.readouterr().err
    assert not (tmpfs / "views.npz").exists()
    write_arrays(tmpfs / "config" / "no" / "folder" / "views.npz", {"a": np.ones(1)})
    assert "views.npz could not be written (No such file or directory" in capsys.readouterr().err


def test_a_conversion_that_finds_no_room_names_its_file(tmpfs: Path):  # noqa: F811
    fill(tmpfs)
    with pytest.raises(UserError, match=rf"manifest\.json {NO_ROOM}: make room .*the same command resumes") as error:
        Manifest({"layout": "x" * 100_000}).save(tmpfs / "manifest.json")
    assert error.value.exit_code == 1


def test_an_index_that_finds_no_room_is_named(tmpfs: Path):  # noqa: F811
    write_pairs(tmpfs / "0.tar", 200)
    fill(tmpfs)
    with pytest.raises(UserError, match=rf"{tmpfs}/\.openslip-index/.* {NO_ROOM}.*the same command"):
        ShardSource(shards=str(tmpfs / "0.tar"), require="caption")
    (tmpfs / "filling").unlink()
    assert len(ShardSource(shards=str(tmpfs / "0.tar"), require="caption")) == 200


class Counting(Evaluation):
    """Returns one metric, and counts how often it ran."""

    runs = 0

    def run(self, bundle: Bundle) -> dict[str, float]:
        Counting.runs += 1
        return {"top1": 12.345}

    def headline(self, metrics: dict[str, float]) -> str:
        return f"counted {metrics['top1']}"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counting]:
    monkeypatch.setattr(Counting, "runs", 0)
    monkeypatch.setattr(evaluate, "load", lambda path, **_: replace(bundle(image_encoder()), file=Path(path)))
    monkeypatch.setattr(evaluate, "build_evaluations", lambda _: {"counting": Counting()})
    return Counting


COUNTED = ["evaluation=none", "+evaluation.counting.key=1", "device=cpu"]


@pytest.mark.parametrize("state", ["read-only", "full"])
def test_an_evaluation_that_cannot_be_written_is_printed(
    tmpfs: Path,  # noqa: F811
    counted: type[Counting],
    state: str,
    capsys: pytest.CaptureFixture[str],
):
    remount(tmpfs, "ro") if state == "read-only" else fill(tmpfs)
    before = sorted(tmpfs.iterdir())
    assert openslip(["eval", f"checkpoint={tmpfs}", *COUNTED]) == 0
    printed, said = capsys.readouterr()
    assert "counted 12.345" in printed
    assert "metrics:" not in printed
    reason = "Read-only file system" if state == "read-only" else "No space left on device"
    assert f"{tmpfs}/evaluation.json could not be written ({reason}" in said
    assert "output=FILE names another place; the metrics are only printed" in said
    assert sorted(tmpfs.iterdir()) == before


@pytest.mark.parametrize("output", ["absent/x.json", "folder", "pipe"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, counted: type[Counting], output: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "pipe").symlink_to("/dev/null")
    arguments = [f"checkpoint={tmp_path}", *COUNTED, f"output={tmp_path}/{output}"]
    assert openslip(["eval", *arguments]) == 1
    assert f"error: {tmp_path}/{output} could not be written (" in capsys.readouterr().err
    assert counted.runs == 0


def test_an_evaluation_is_written_whole_or_not_at_all_after_it_is_printed(
    tmpfs: Path,  # noqa: F811
    counted: type[Counting],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    output = tmpfs / "x.json"
    arguments = ["eval", f"checkpoint={tmpfs}", *COUNTED, f"output={output}"]
    assert openslip(arguments) == 0
    assert json.loads(output.read_text())["metrics"] == {"counting": {"top1": 12.345}}
    capsys.readouterr()
    fill(tmpfs)
    monkeypatch.setattr(evaluate, "refuse_unwritable", lambda *_, **__: None)  # fills up during the evaluation
    metrics: dict[str, Any] = {f"{number:0999}": 1.0 for number in range(100)}
    monkeypatch.setattr(Counting, "run", lambda *_: {"top1": 2.0, **metrics})
    assert openslip(arguments) == 1
    printed, said = capsys.readouterr()
    assert "counted 2.0" in printed
    assert f"error: {output} could not be written (No space left on device" in said
    assert json.loads(output.read_text())["metrics"] == {"counting": {"top1": 12.345}}


def test_a_trial_leaves_the_file_as_it_is(tmp_path: Path):
    (tmp_path / "x.json").write_text("as before")
    refuse_unwritable(tmp_path / "x.json", advice="")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.json", "as before")]


def test_a_trial_does_not_follow_a_link(tmp_path: Path):
    (tmp_path / "target").write_text("as before")
    (tmp_path / f".x.json.{os.getpid()}.tmp").symlink_to("target")
    refuse_unwritable(tmp_path / "x.json", advice="")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("target", "as before")]
