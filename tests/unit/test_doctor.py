"""The doctor's lines tell what is wrong and what to do."""

from pathlib import Path

import torch

from openslip.commands.doctor import examine, failed_starts, open_files, runs
from openslip.locks import locked
from openslip.run.checkpoints import file_name
from openslip.run.identity import with_format, write_config
from openslip.training.checkpoint_io import DurableCheckpointIO


def test_every_line_is_one_line_and_an_empty_folder_has_no_runs(tmp_path: Path):
    findings = examine(tmp_path / "not" / "there")
    assert {"versions", "devices", "disk", "TMPDIR", "shared memory", "open files"} <= {f.subject for f in findings}
    assert all("\n" not in finding.line() for finding in findings)
    assert not (tmp_path / "not").exists()


def test_damaged_checkpoints_are_listed_and_nothing_is_changed(tmp_path: Path):
    folder = tmp_path / "first" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (1, 2):
        content = {"openslip": {"step": step}, "weight": torch.ones(10)}
        io = DurableCheckpointIO()
        io.save_checkpoint(content, folder / file_name(step))
        assert io.wait() is None
    (tmp_path / "first" / "config.yaml").write_text("")
    assert [finding.line() for finding in runs(tmp_path)] == [
        "ok      run first       unfinished, valid checkpoints at steps 2, 1"
    ]
    (folder / file_name(2)).write_bytes(b"")
    before = sorted(path.name for path in folder.iterdir())
    run, damaged = runs(tmp_path)
    assert run.state == "unfinished, valid checkpoints at steps 1"
    assert damaged.line().startswith("warning run first       step-000002.ckpt is damaged, 0 bytes where")
    (folder / file_name(1)).write_bytes(b"")
    assert "it cannot be resumed" in runs(tmp_path)[0].line()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_checkpoint_of_another_run_is_listed(tmp_path: Path):
    folder = tmp_path / "first" / "checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "first" / "config.yaml").write_text(write_config({"seed": 1}))
    io = DurableCheckpointIO(with_format({"seed": 2}))
    io.save_checkpoint({"openslip": {"step": 4}}, folder / file_name(4))
    assert io.wait() is None
    run, foreign = runs(tmp_path)
    assert "no valid checkpoint" in run.state
    assert foreign.line() == (
        "warning run first       step-000004.ckpt is of another run, seed: 2 in it, 1 in the run: "
        "move it and its .json out of the folder"
    )


def test_a_start_that_failed_is_told_from_one_that_is_under_way_and_from_other_folders(tmp_path: Path):
    for name in ("failed", "starting", "begun", "other"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "model.pt").write_text("")
        if name != "other":
            (tmp_path / name / ".lock").write_text("1 on somewhere\n")
    (tmp_path / "begun" / "config.yaml").write_text("seed: 0\n")
    before = sorted(tmp_path.rglob("*"))
    with locked(tmp_path / "starting" / ".lock"):
        lines = [finding.line() for finding in failed_starts(tmp_path)]
    assert lines == [
        "warning run failed      failed before the end of its first step: the same command removes its files and "
        "starts again; or delete the folder",
        "ok      run starting    is starting",
    ]
    assert sorted(tmp_path.rglob("*")) == before
    assert [finding.subject for finding in examine(tmp_path)[-3:]] == ["run begun", "run failed", "run starting"]


def test_few_open_files_are_a_warning(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 1_048_576))
    assert open_files().line() == "warning open files      1024 allowed: raise it: ulimit -n 65536"
