"""A run's folder is named by its config and never overwritten by another one."""

from pathlib import Path

import pytest
from small_disk import remount, tmpfs  # noqa: F401

from openslip.errors import CheckpointError, UserError
from openslip.training.run import open_run, run_name


def config(tmp_path: Path, **changes) -> dict:
    default = {"name": None, "runs_dir": str(tmp_path), "resume": "auto", "logger": {}, "seed": 0, "optim": {"lr": 0.1}}
    return default | changes


def test_the_same_config_has_the_same_name_and_another_one_another(tmp_path: Path):
    name = run_name(config(tmp_path), "slip_tiny-builtin")
    assert name.startswith("slip_tiny-builtin-")
    assert run_name(config(tmp_path, logger={"wandb": {}}), "slip_tiny-builtin") == name
    assert run_name(config(tmp_path, seed=1), "slip_tiny-builtin") != name


@pytest.mark.parametrize("name", ["a/b", "..", ""])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="name="):
        run_name(config(tmp_path, name=name), "x")


def test_a_new_run_leaves_its_config_and_environment(tmp_path: Path):
    run = open_run(config(tmp_path), "a", main_process=True)
    assert run.state == "new"
    assert (run.folder / "config.yaml").exists()
    assert (run.folder / "env.json").exists()


def test_another_config_under_the_same_name_names_the_keys_and_values(tmp_path: Path):
    open_run(config(tmp_path), "a", main_process=True)
    with pytest.raises(UserError, match=r"optim\.lr: there 0\.1, now 0\.2"):
        open_run(config(tmp_path, optim={"lr": 0.2}), "a", main_process=True)


def test_an_unfinished_run_keeps_its_files_and_a_finished_one_its_result(tmp_path: Path):
    run = open_run(config(tmp_path), "a", main_process=True)
    (run.folder / "metrics.csv").write_text("step\n")
    (run.checkpoints / ".step-000003.ckpt.99999.tmp").write_bytes(b"half")
    again = open_run(config(tmp_path), "a", main_process=True)
    assert again.state == "unfinished"
    assert (run.folder / "metrics.csv").exists()
    assert list(run.checkpoints.iterdir()) == []
    again.finish({"step": 3, "metrics": {}, "lines": ["done"]})
    finished = open_run(config(tmp_path), "a", main_process=True)
    assert finished.state == "finished"
    assert finished.result()["lines"] == ["done"]


def test_other_hardware_goes_on_with_the_same_run(tmp_path: Path):
    first = config(tmp_path, micro_batch_size=None, trainer={"devices": 1, "max_steps": 5})
    other = config(tmp_path, micro_batch_size=8, trainer={"devices": 2, "max_steps": 5, "strategy": {"x": 1}})
    assert run_name(first, "x") == run_name(other, "x")
    open_run(first, "a", main_process=True)
    assert open_run(other, "a", main_process=True).state == "unfinished"


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmpfs: Path):  # noqa: F811
    remount(tmpfs, "ro")
    with pytest.raises(CheckpointError, match=f"{tmpfs}/a cannot be written \\(Read-only file system\\)"):
        open_run(config(tmpfs), "a", main_process=True)


def test_resume_never_refuses_a_name_that_exists(tmp_path: Path):
    open_run(config(tmp_path), "a", main_process=True)
    with pytest.raises(UserError, match="resume=never"):
        open_run(config(tmp_path, resume="never"), "a", main_process=True)


def test_other_ranks_touch_nothing(tmp_path: Path):
    run = open_run(config(tmp_path), "a", main_process=False)
    assert not run.folder.exists()


def test_other_ranks_agree_that_a_finished_run_has_nothing_to_do(tmp_path: Path):
    open_run(config(tmp_path), "a", main_process=True).finish({"step": 1, "metrics": {}, "lines": []})
    assert open_run(config(tmp_path), "a", main_process=False).state == "finished"
