"""What a run does with disks that are full or read-only, and with checkpoints that are not its own."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from marks import slow
from shard_files import jpeg
from small_disk import remount, tmpfs  # noqa: F401
from trainings import RUN, Training, assert_ended_as, newest, steps_saved, two_ranks

from openslip.__main__ import run as openslip
from openslip.durable import Hashing
from openslip.inference.files import read
from openslip.run.checkpoints import file_name, finish, newest_whole


def start(place: Path, ranks: int, *arguments: str, log: str, **environment: str) -> list[Training]:
    if ranks == 2:
        return two_ranks(place, *arguments, log=log, **environment)
    return [Training(place, *arguments, log=f"{log}0", **environment)]


@pytest.mark.parametrize("ranks", [1, slow(2)])
def test_a_disk_full_while_saving_ends_all_ranks_with_5_and_the_old_checkpoint(
    place: Path,
    tmpfs: Path,  # noqa: F811
    request: pytest.FixtureRequest,
    ranks: int,
):
    run, log = [*RUN, f"runs_dir={tmpfs}", "name=full"], f"full{ranks}-"
    started = start(place, ranks, *run, log=log, IMPATIENT="1")
    assert [rank.wait() for rank in started] == [5] * ranks
    for rank in started:
        assert f"checkpoint {tmpfs}/full/checkpoints/step-000008.ckpt could not be written" in rank.said()
        assert re.search(r"error: (rank \d: )?checkpoint ", rank.said())
        assert re.search(r"\(\d+\.\d MB free, \d+\.\d MB needed in .*: make room", rank.said())
    assert newest(tmpfs / "full")["openslip"]["step"] == 6
    remount(tmpfs, "size=100m")
    for rank in start(place, ranks, *run, log=log):
        assert rank.wait() == 0, rank.said()
    assert_ended_as(tmpfs / "full", request.getfixturevalue("whole" if ranks == 1 else "whole_of_two"))


def test_a_checkpoint_folder_that_is_read_only_ends_the_run_with_5_before_its_first_step(
    place: Path,
    tmpfs: Path,  # noqa: F811
):
    folder = place / "runs" / "read_only"
    folder.mkdir(parents=True)
    (folder / "checkpoints").symlink_to(tmpfs)
    remount(tmpfs, "ro")
    made = place / "steps_of_read_only"
    training = Training(place, *RUN, "name=read_only", log="read_only", STEPS_MADE=str(made))
    assert training.wait() == 5
    assert "error: runs/read_only cannot be written (Read-only file system; " in training.said()
    assert not made.exists()


def test_a_report_and_arrays_that_cannot_be_written_cost_no_finished_training(place: Path, whole: Path):
    folder = place / "runs" / "cosmetic"
    for name in ("report.html", "arrays/views.npz", "arrays/similarity.npz"):
        (folder / name).mkdir(parents=True)  # no file can take its place
    training = Training(place, *RUN, "name=cosmetic", log="cosmetic", REPORT="yes")
    assert training.wait() == 0, training.said()
    said = training.said()
    assert "WARNING: runs/cosmetic/arrays/views.npz could not be written (Is a directory" in said
    assert "report: none (runs/cosmetic/report.html could not be written (Is a directory" in said
    assert (folder / "result.json").exists()
    assert_ended_as(folder, whole)


SLURM = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NODELIST": "localhost"}
SLURM |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.mark.parametrize("environment", [{}, slow(SLURM)], ids=["alone", "in a SLURM job"])
def test_checkpoints_of_other_names_are_never_gone_on_from(place: Path, whole: Path, environment: dict[str, str]):
    name = f"foreign{len(environment)}"
    folder = place / "runs" / name
    for where in (folder, folder / "checkpoints"):
        where.mkdir(parents=True)
        for foreign in ("hpc_ckpt_99.ckpt", "last-v1.ckpt", "on_exception.ckpt"):
            shutil.copy(newest_whole(whole / "checkpoints").path, where / foreign)
    training = Training(place, *RUN, f"name={name}", log=name, DISTURB="signal 8 0", **environment)
    assert training.wait() == 143, training.said()
    assert "resumes after" not in training.said()
    assert steps_saved(folder)[0] == 8
    training = Training(place, *RUN, f"name={name}", log=name, **environment)
    assert training.wait() == 0, training.said()
    assert "Resumed at step 8 of 30." in training.said()
    assert_ended_as(folder, whole)


def test_a_checkpoint_of_another_run_is_refused_by_name_and_the_run_does_not_finish_with_it(place: Path, whole: Path):
    other = [*RUN, "name=dropped", "seed=1"]
    assert Training(place, *other, log="dropped", DISTURB="signal 8 0").wait() == 143
    folder = place / "runs" / "dropped"
    newest_of_whole = newest_whole(whole / "checkpoints").path
    for suffix in (".ckpt", ".json"):
        shutil.copy(newest_of_whole.with_suffix(suffix), folder / "checkpoints")
    training = Training(place, *other, log="dropped")
    assert training.wait() == 5, training.said()
    assert (
        "error: checkpoint runs/dropped/checkpoints/step-000030.ckpt is of another run (seed: 0 in it, 1 in the run)"
    ) in training.said()
    assert not (folder / "result.json").exists()
    assert steps_saved(folder) == [30, 8, 6]


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("command", ["resume", "towers", "eval", "predict"])
def test_a_checkpoint_that_would_run_code_is_refused_by_name_and_nothing_runs(
    place: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str
):
    mark, name = tmp_path / "PWNED", f"evil_{command}"
    folder = place / "runs" / name / "checkpoints"
    if command == "resume":  # by a run of the same settings
        assert Training(place, *RUN, f"name={name}", log=name, DISTURB="signal 8 0").wait() == 143
    folder.mkdir(parents=True, exist_ok=True)
    evil = folder / file_name(9)
    with evil.open("wb") as file:
        content = {**read(newest_whole(whole / "checkpoints").path), "hook": Evil(mark)}
        torch.save(content, hashing := Hashing(file))  # pyright: ignore[reportArgumentType]
    finish(evil, 9, hashing)  # so that it counts as whole
    if command == "resume":
        training = Training(place, *RUN, f"name={name}", log=name)
        code, said = training.wait(), training.said()
    elif command == "towers":
        training = Training(place, *RUN, f"name={name}_start", f"towers.image.weights={evil}", log=name)
        code, said = training.wait(), training.said()
    elif command == "eval":
        code = openslip(["eval", f"checkpoint={evil.parent.parent}", "evaluation=none", "device=cpu"])
        said = capfd.readouterr().err
    else:
        (tmp_path / "picture.jpg").write_bytes(jpeg(0))
        arguments = ["--checkpoint", str(evil), "--labels", "dog,cat", "--device", "cpu"]
        code = openslip(["predict", str(tmp_path / "picture.jpg"), *arguments])
        said = capfd.readouterr().err
    assert code == 1
    assert f"it names {os.system.__module__}.system, which could run code: the file is refused" in said
    assert not mark.exists()
    torch.load(evil, weights_only=False)  # the same file does run where nobody guards it
    assert mark.exists()
