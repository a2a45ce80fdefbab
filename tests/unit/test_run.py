"""A run's folder is named by its config and never overwritten by another one."""

import json
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_disk import remount, tmpfs  # noqa: F401

from openslip.errors import CheckpointError, UserError
from openslip.locks import is_locked, locked
from openslip.run import folder, folder_lock
from openslip.run.folder import Run, open_run, run_name, shorter
from openslip.run.identity import FORMAT, write_config


def started(config: dict[str, Any], name: str) -> Run:
    """The run, as after a set-up that succeeded."""
    run = open_run(config, name)
    if run.state != "finished":
        run.begin(config, {})
    return run


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
    run = started(config(tmp_path), "a")
    assert run.state == "new"
    assert (run.folder / "config.yaml").exists()
    assert (run.folder / "env.json").exists()


def test_another_config_under_the_same_name_names_the_keys_and_values(tmp_path: Path):
    started(config(tmp_path), "a")
    with pytest.raises(UserError, match=r"optim\.lr: 0\.1 in the run, now 0\.2"):
        started(config(tmp_path, optim={"lr": 0.2}), "a")


def test_an_unfinished_run_keeps_its_files_and_a_finished_one_its_result(tmp_path: Path):
    run = started(config(tmp_path), "a")
    (run.folder / "metrics.csv").write_text("step\n")
    (run.checkpoints / ".step-000003.ckpt.99999.tmp").write_bytes(b"half")
    again = started(config(tmp_path), "a")
    assert again.state == "unfinished"
    assert (run.folder / "metrics.csv").exists()
    assert list(run.checkpoints.iterdir()) == []
    again.finish({"step": 3, "metrics": {}, "lines": ["done"]})
    finished = started(config(tmp_path), "a")
    assert finished.state == "finished"
    assert finished.result()["lines"] == ["done"]


def test_a_key_that_is_off_names_no_other_run(tmp_path: Path):
    named = run_name(config(tmp_path), "x")
    assert run_name(config(tmp_path, towers={"image": {"weights": None}}), "x") == named
    assert run_name(config(tmp_path, towers={"image": {"weights": "a"}}), "x") != named


def test_a_run_resumes_with_its_data_elsewhere_and_a_larger_budget(tmp_path: Path):
    def with_data(place: str, budget: float) -> dict:
        return config(tmp_path, data={"source": {"shards": place}, "bad_sample_budget": budget})

    started(with_data("/scratch/1", 0.001), "a")
    assert started(with_data("/scratch/2", 0.1), "a").state == "unfinished"
    assert run_name(with_data("/scratch/1", 0.1), "x") != run_name(with_data("/scratch/2", 0.1), "x")


def test_a_run_has_one_identifier_and_another_run_of_its_name_another(tmp_path: Path):
    first = started(config(tmp_path), "a").identifier()
    assert started(config(tmp_path), "a").identifier() == first
    shutil.rmtree(tmp_path / "a")
    assert started(config(tmp_path), "a").identifier() != first


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_a_folder_under_another_name_has_an_identifier_of_its_own(
    tmp_path: Path, how: Callable[[Path, Path], object], capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a").mkdir()
    first, copy = Run(tmp_path / "a", "unfinished").identifier(), Run(tmp_path / "b", "unfinished")
    how(tmp_path / "a", tmp_path / "b")
    second = copy.identifier()
    assert second.startswith("b-")
    assert capsys.readouterr().out == (
        f"{tmp_path}/b was copied or renamed: its id is now {second}, it was {first!r}\n"
    )
    assert copy.identifier() == second
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"\xff\n", b"a-12345\n", b"a-123456\nb-123456\n", b"ab-123456"])
def test_a_damaged_identifier_is_replaced(tmp_path: Path, content: bytes):
    run = started(config(tmp_path), "a")
    (run.folder / "id.txt").write_bytes(content)
    assert re.fullmatch("a-[0-9a-f]{6}", run.identifier())


def test_other_hardware_resumes_the_same_run(tmp_path: Path):
    first = config(tmp_path, micro_batch_size=None, trainer={"devices": 1, "max_steps": 5})
    other = config(tmp_path, micro_batch_size=8, trainer={"devices": 2, "max_steps": 5, "strategy": {"x": 1}})
    assert run_name(first, "x") == run_name(other, "x")
    started(first, "a")
    assert started(other, "a").state == "unfinished"


def test_of_two_folders_of_a_run_under_earlier_names_the_latest_is_resumed(tmp_path: Path):
    first = started(config(tmp_path), "x-00000000").folder
    os.utime(first / "config.yaml", (1, 1))
    for name, place in (("x-22222222", 3), ("x-11111111", 2)):
        shutil.copytree(first, tmp_path / name)
        os.utime(tmp_path / name / "config.yaml", (place, place))
    assert open_run(config(tmp_path), run_name(config(tmp_path), "x")).folder.name == "x-22222222"


def longer(tmp_path: Path, **trainer) -> dict:
    return config(tmp_path, trainer=trainer)


def finished(tmp_path: Path, **trainer) -> Run:
    run = started(longer(tmp_path, **trainer), "a")
    run.finish({"step": 30, "metrics": {}, "lines": ["done"]})
    return run


def stored(tmp_path: Path) -> dict:
    return yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())


def test_an_evaluation_and_a_callback_are_added_to_an_unfinished_run_and_stand_in_its_config(tmp_path: Path):
    started(config(tmp_path), "a")
    more = config(
        tmp_path, evaluation={"knn": {"k": 3}}, callbacks={"save": {"every_n_steps": 3}}, logger={"wandb": {}}
    )
    assert started(more, "a").state == "unfinished"
    assert stored(tmp_path) == {"format": FORMAT, **more}


@pytest.mark.parametrize(("key", "other"), [("max_steps", "max_epochs"), ("max_epochs", "max_steps")])
def test_a_longer_run_of_the_same_name_extends_it(tmp_path: Path, key: str, other: str):
    former = {key: 30, other: None}
    finished(tmp_path, **former)
    assert started(longer(tmp_path, **former), "a").state == "finished"
    run = started(longer(tmp_path, **{**former, key: 60}), "a")
    assert (run.state, run.former_length) == ("unfinished", {key: 30})
    assert not run.result_file.exists()
    assert json.loads((run.folder / "result-000030.json").read_text())["lines"] == ["done"]
    assert stored(tmp_path)["trainer"][key] == 60
    again = started(longer(tmp_path, **{**former, key: 60}), "a")
    assert (again.state, again.former_length) == ("unfinished", None)


def test_a_longer_run_without_a_name_is_told_of_the_shorter_ones(tmp_path: Path):
    steps = {number: config(tmp_path, trainer={"max_steps": number}) for number in (10, 20, 30, 40)}
    runs = {number: open_run(steps[number], run_name(steps[number], "x")) for number in steps}
    for number in (20, 30):
        runs[number].begin(steps[number], {})
    another = config(tmp_path, trainer={"max_steps": 20}, seed=1)
    started(another, run_name(another, "x"))
    assert shorter(runs[40], steps[40]) == sorted([runs[20].folder, runs[30].folder])
    assert shorter(runs[20], steps[20]) == []
    assert shorter(runs[10], steps[10]) == []
    assert shorter(runs[40], {**steps[40], "name": "mine"}) == []


def test_an_unfinished_run_is_extended_too(tmp_path: Path):
    started(longer(tmp_path, max_steps=30), "a")
    run = started(longer(tmp_path, max_steps=60), "a")
    assert (run.state, run.former_length) == ("unfinished", {"max_steps": 30})


@pytest.mark.parametrize(
    ("former", "given", "message"),
    [
        ({"max_steps": 60}, {"max_steps": 30}, r"max_steps=60, and trainer\.max_steps=30 is shorter: give 60 or more"),
        ({"max_epochs": 6}, {"max_epochs": 3}, r"max_epochs=6, and trainer\.max_epochs=3 is shorter: give 6 or more"),
        ({"max_steps": 6}, {"max_epochs": 9}, r"max_epochs=null: keep that and raise the other"),
        ({"max_steps": 6}, {"max_steps": 9, "max_epochs": 1}, r"max_epochs=null: keep that"),
    ],
)
def test_a_shorter_length_is_refused_by_both_numbers_and_changes_nothing(
    tmp_path: Path, former: dict, given: dict, message: str
):
    run = finished(tmp_path, **former)
    with pytest.raises(UserError, match=message):
        started(longer(tmp_path, **given), "a")
    assert run.result_file.exists()
    assert stored(tmp_path)["trainer"] == former


def test_another_config_is_refused_before_a_run_is_extended(tmp_path: Path):
    run = finished(tmp_path, max_steps=30)
    with pytest.raises(UserError, match="seed: 0 in the run, now 1"):
        started({**longer(tmp_path, max_steps=60), "seed": 1}, "a")
    assert run.result_file.exists()


@pytest.mark.parametrize("last", ["result-000030.json", "env.json", "config.yaml"])
def test_an_extension_that_is_killed_after_any_write_is_made_up_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
):
    finished(tmp_path, max_steps=30)
    real_write, real_sync = folder.write_text, folder.sync_folder

    def write(path: Path, text: str) -> None:
        real_write(path, text)
        if path.name == last:
            raise KeyboardInterrupt

    def sync(path: Path) -> None:
        real_sync(path)
        if last.startswith("result"):
            raise KeyboardInterrupt

    monkeypatch.setattr(folder, "write_text", write)
    monkeypatch.setattr(folder, "sync_folder", sync)
    with pytest.raises(KeyboardInterrupt):
        started(longer(tmp_path, max_steps=60), "a")
    monkeypatch.undo()
    run = started(longer(tmp_path, max_steps=60), "a")
    assert run.state == "unfinished"
    assert run.former_length == (None if last == "config.yaml" else {"max_steps": 30})
    assert not run.result_file.exists()
    assert json.loads((run.folder / "result-000030.json").read_text())["lines"] == ["done"]


def test_other_ranks_do_not_take_an_extended_run_for_finished_whenever_they_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    finished(tmp_path, max_steps=30)
    seen, real = [], folder.write_text

    def look() -> None:
        monkeypatch.setenv("RANK", "1")
        seen.append(started(longer(tmp_path, max_steps=60), "a").state)
        monkeypatch.delenv("RANK")

    def write(path: Path, text: str) -> None:
        look()
        real(path, text)
        look()

    monkeypatch.setattr(folder, "write_text", write)
    started(longer(tmp_path, max_steps=60), "a")
    assert len(seen) == 6
    assert set(seen) == {"unfinished"}


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmpfs: Path):  # noqa: F811
    remount(tmpfs, "ro")
    with pytest.raises(CheckpointError, match=f"{tmpfs}/a cannot be written \\(Read-only file system; "):
        started(config(tmpfs), "a")


def test_resume_never_refuses_a_name_that_exists(tmp_path: Path):
    started(config(tmp_path), "a")
    with pytest.raises(UserError, match="resume=never"):
        started(config(tmp_path, resume="never"), "a")


def test_a_run_to_be_replaced_starts_anew_and_keeps_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = started(config(tmp_path, resume="replace"), "a")
    first.finish({"step": 1, "metrics": {}, "lines": []})
    written = ("result-000001.json", "report.html", "metrics.csv", "evaluation-x.json", "profile/trace")
    for name in (*written, "evaluations/step-000001/x.json", "notes.txt"):
        (first.folder / name).parent.mkdir(exist_ok=True, parents=True)
        (first.folder / name).touch()
    (first.checkpoints / "step-000001.ckpt").touch()
    changed = config(tmp_path, resume="replace", seed=1)  # another config, which would be refused otherwise
    assert open_run(changed, "a").state == "new"
    left = {path.name for path in first.folder.iterdir()}
    assert left == {"arrays", "checkpoints", "notes.txt", ".lock"}
    assert not list(first.checkpoints.iterdir())
    monkeypatch.setenv("RANK", "1")
    assert open_run(changed, "a").state == "new"


def test_a_link_in_a_replaced_run_is_removed_and_not_what_it_leads_to(tmp_path: Path):
    run = started(config(tmp_path, resume="replace"), "a")
    (tmp_path / "other_disk").mkdir()
    (tmp_path / "other_disk" / "file").touch()
    (run.folder / "arrays").rmdir()
    (run.folder / "arrays").symlink_to(tmp_path / "other_disk")
    assert started(config(tmp_path, resume="replace"), "a").state == "new"
    assert not (run.folder / "arrays").is_symlink()
    assert (tmp_path / "other_disk" / "file").exists()


def test_checkpoints_and_folders_of_others_are_not_replaced(tmp_path: Path):
    foreign = tmp_path / "a" / "checkpoints"
    foreign.mkdir(parents=True)
    (foreign / "model.pt").write_text("mine")
    open_run(config(tmp_path, resume="replace"), "a")
    assert (foreign / "model.pt").read_text() == "mine"
    (foreign / "step-000003.json").write_text('{"step": 3, "size": 1, "sha256": ""}')  # of a run whose config was lost
    with pytest.raises(UserError, match="resume=replace would delete the run"):
        open_run(config(tmp_path, resume="replace"), "a")


def test_a_requeued_run_is_resumed_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = started(config(tmp_path, resume="replace"), "a")
    (run.checkpoints / "step-000003.ckpt").write_bytes(b"3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert open_run(config(tmp_path, resume="replace"), "a").state == "unfinished"
    assert (run.checkpoints / "step-000003.ckpt").exists()


def test_a_run_that_was_not_meant_to_be_replaced_is_never_deleted(tmp_path: Path):
    run = started(config(tmp_path), "a")
    with pytest.raises(UserError, match=f"resume=replace would delete the run {run.folder}, .* another name="):
        open_run(config(tmp_path, resume="replace"), "a")
    assert (run.folder / "config.yaml").exists()


def test_other_ranks_touch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    run = started(config(tmp_path), "a")
    assert not run.folder.exists()


def test_other_ranks_agree_that_a_finished_run_has_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started(config(tmp_path), "a").finish({"step": 1, "metrics": {}, "lines": []})
    monkeypatch.setenv("RANK", "1")
    assert started(config(tmp_path), "a").state == "finished"


def test_addresses_are_kept_shown_and_compared_without_their_secrets(tmp_path: Path):
    def config(address: str) -> dict:
        source = {"shards": [address], "mirror": address}
        return {"name": "x", "runs_dir": str(tmp_path), "resume": "auto", "seed": 0, "data": {"source": source}}

    first = config("https://user:SECRET@host/a.tar?sig=TOKEN")
    assert run_name({**first, "name": None}, "x") == run_name({**config("https://host/a.tar"), "name": None}, "x")
    run = started(first, "x")
    assert "https://host/a.tar" in (run.folder / "config.yaml").read_text()
    assert "SECRET" not in (run.folder / "config.yaml").read_text()
    assert "TOKEN" not in (run.folder / "config.yaml").read_text()
    with pytest.raises(UserError, match="another config") as refusal:
        started(config("https://user:SECRET@host/b.tar?sig=TOKEN"), "x")
    assert "data.source.mirror: https://host/a.tar in the run, now https://host/b.tar" in str(refusal.value)
    assert "SECRET" not in str(refusal.value)
    assert "TOKEN" not in str(refusal.value)


def test_a_set_up_that_fails_takes_no_name_and_undoes_no_result(tmp_path: Path):
    open_run(config(tmp_path), "a")  # and no `begin`
    other = config(tmp_path, seed=1, trainer={"max_steps": 20})
    assert open_run(other, "a").state == "new"
    run = started(other, "a")
    run.finish({"step": 20, "metrics": {}, "lines": []})
    longer = config(tmp_path, seed=1, trainer={"max_steps": 30})
    assert open_run(longer, "a").state == "unfinished"
    assert open_run(other, "a").state == "finished"


LEFT = (
    "tensorboard/events",
    "metrics.csv",
    "micro_batch_size.json",
    "id.txt",
    "arrays/views.npz",
    "bad_samples-rank1.jsonl",
    "wandb/a",
)


def killed_start(folder: Path) -> Path:
    """The folder as a start leaves it that is killed before the end of its first step."""
    for name in (*LEFT, ".lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the killed start")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / ".writable.1.tmp").write_text("")
    return folder


def test_the_next_start_removes_what_a_killed_start_has_left(tmp_path: Path):
    folder = killed_start(tmp_path / "a")
    (folder / "notes.txt").write_text("of the user")
    run = open_run(config(tmp_path), "a")
    assert run.state == "new"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {
        *(".lock", "arrays", "checkpoints", "notes.txt")
    }
    run.abandon()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/step-000003.json"])
def test_a_run_that_has_begun_or_has_a_checkpoint_keeps_its_files(tmp_path: Path, name: str):
    folder = killed_start(tmp_path / "a")
    (folder / name).write_text(write_config(config(tmp_path)))
    open_run(config(tmp_path), "a")
    assert all((folder / file).exists() for file in LEFT)


def test_a_folder_in_which_no_run_was_started_keeps_its_files(tmp_path: Path):
    folder = killed_start(tmp_path / "a")
    (folder / ".lock").unlink()
    (folder / "checkpoints" / "model.pt").write_text("of another program")
    run = open_run(config(tmp_path), "a")
    assert all((folder / file).exists() for file in LEFT)
    run.abandon()
    assert (folder / "checkpoints" / "model.pt").exists()


def test_a_process_that_is_starting_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder_of_run = killed_start(tmp_path / "a")
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.0)
    with locked(folder_of_run / ".lock"), pytest.raises(UserError, match="is being trained by process"):
        open_run(config(tmp_path), "a")
    assert all((folder_of_run / file).exists() for file in LEFT)


def test_a_start_that_waits_for_one_that_fails_locks_the_folder_anew(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(target=start_and_fail, args=(tmp_path,))
    process.start()
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    assert open_run(config(tmp_path), "a").state == "new"
    assert (tmp_path / "failed").exists()
    process.join()
    assert is_locked(tmp_path / "a" / ".lock")
    assert (tmp_path / "a" / ".lock").read_text().startswith(f"{os.getpid()} on ")


def start_and_fail(runs_dir: Path) -> None:
    run = open_run(config(runs_dir), "a")
    (runs_dir / "started").touch()
    time.sleep(0.5)
    run.abandon()
    (runs_dir / "failed").touch()


def test_a_folder_that_was_given_up_is_locked_anew_by_the_same_process(tmp_path: Path):
    open_run(config(tmp_path), "a").abandon()
    open_run(config(tmp_path), "a")
    assert is_locked(tmp_path / "a" / ".lock")


@pytest.mark.parametrize(("restarts", "seconds"), [("0", 5), ("2", 120)])
def test_a_requeued_job_waits_until_the_lock_of_a_lost_node_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: str, seconds: int
):
    waits: list[float] = []

    def noted(path: Path, *, wait: float) -> AbstractContextManager[bool]:
        waits.append(wait)
        return locked(path)

    monkeypatch.setattr(folder_lock, "locked", noted)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    open_run(config(tmp_path), "a")
    assert waits == [seconds]


def test_a_folder_that_cannot_be_filled_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_text", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        open_run(config(tmp_path), "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ['{"step', "[]", "{}", '{"step": "8", "metrics": {}, "lines": []}', "\ufeff{}"])
def test_a_damaged_result_is_named_with_what_to_do(tmp_path: Path, text: str):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"result\.json is damaged: delete it, and the same command writes it"):
        Run(tmp_path, "finished").result()
