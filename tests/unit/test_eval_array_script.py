"""The batch script of evaluations, run by bash with a stand-in for srun that notes what it is given."""

import os
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "eval_array.sbatch"
# It fails for checkpoints of step 2, and removes the one of step 3 as a run does that has saved two newer ones.
SRUN = """#!/usr/bin/env bash
checkpoint=$(printf '%s\\n' "$@" | sed -n 's/^checkpoint=//p')
echo "$@" >> "$NOTES"
case $checkpoint in
  *2.ckpt) exit 1 ;;
  *3.ckpt) rm "$checkpoint"; exit 1 ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return tmp_path


def start(place: Path, *arguments: str, task: int = 0) -> subprocess.Popen[bytes]:
    environment = {
        **{key: value for key, value in os.environ.items() if key in ("OPENSLIP_EVAL_PATIENCE", "SECONDS")},
        **{"PATH": f"{place}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "3", "OPENSLIP_EVAL_SECONDS": "0.05"},
        **{"SLURM_ARRAY_TASK_ID": str(task), "NOTES": str(place / "notes")},
    }
    with (place / "errors").open("wb") as errors:
        return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=environment, stderr=errors)


def save(place: Path, step: int) -> None:
    for suffix in ("ckpt", "json"):
        (place / "run" / "checkpoints" / f"step-{step}.{suffix}").touch()


def evaluated(place: Path) -> list[str]:
    lines = (place / "notes").read_text().splitlines() if (place / "notes").exists() else []
    return [next(word for word in line.split() if word.startswith("checkpoint=")) for line in lines]


def wait_for(place: Path, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(evaluated(place)) < count:
        assert time.monotonic() < deadline, evaluated(place)
        time.sleep(0.02)


def test_a_checkpoint_is_evaluated_once(place: Path):
    process = start(place, "a.ckpt", "b.ckpt", "--", "evaluation=[one,two]", "device=cpu", task=1)
    assert process.wait(20) == 0
    (line,) = (place / "notes").read_text().splitlines()
    assert line.startswith("--kill-on-bad-exit=1 --cpus-per-task=3 bash -c")
    assert line.endswith("python eval_zeroshot.py checkpoint=b.ckpt evaluation=[one,two] device=cpu")


def test_checkpoints_of_a_run_are_evaluated_as_they_appear_until_it_is_finished(place: Path):
    run = place / "run"
    save(place, 1)
    process = start(place, str(run), "--", "evaluation=one")
    wait_for(place, 1)
    (run / "checkpoints" / "step-4.ckpt").touch()  # still being written: it has no JSON yet
    time.sleep(0.2)
    assert process.poll() is None
    save(place, 4)
    wait_for(place, 2)
    save(place, 5)
    (run / "result.json").touch()
    assert process.wait(20) == 0
    assert evaluated(place) == [f"checkpoint={run}/checkpoints/step-{step}.ckpt" for step in (1, 4, 5)]


def test_a_failure_is_its_exit_code_and_a_removed_checkpoint_is_none(place: Path):
    save(place, 3)
    (place / "run" / "result.json").touch()
    assert start(place, str(place / "run"), "--", "evaluation=one").wait(20) == 0
    save(place, 2)
    save(place, 4)
    assert start(place, str(place / "run"), "--", "evaluation=one").wait(20) == 1
    assert [word[-6:] for word in evaluated(place)] == ["3.ckpt", "2.ckpt", "4.ckpt"]


def test_a_run_may_begin_later(place: Path):
    (place / "run" / "checkpoints").rmdir()
    process = start(place, str(place / "run"), "--", "evaluation=one")
    assert process.wait(20) == 0
    assert evaluated(place) == [f"checkpoint={place}/run"], "a folder of another kind"
    (place / "run" / ".lock").touch()
    for folder in ("run", "runs/later"):
        process = start(place, str(place / folder), "--", "evaluation=one")
        time.sleep(0.2)
        assert process.poll() is None, (place / "errors").read_text()
        (place / folder / "checkpoints").mkdir(parents=True)
        for suffix in ("ckpt", "json"):
            (place / folder / "checkpoints" / f"step-1.{suffix}").touch()
        (place / folder / "result.json").touch()
        assert process.wait(20) == 0
        assert evaluated(place)[-1] == f"checkpoint={place / folder}/checkpoints/step-1.ckpt"


@pytest.mark.parametrize("folder", ["run", "runs/never"])
def test_a_run_in_which_nothing_changes_is_given_up(place: Path, folder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENSLIP_EVAL_PATIENCE", "1")
    process = start(place, str(place / folder), "--", "evaluation=one")
    assert process.wait(20) == 1
    assert f"error: nothing in {place / folder} has changed for 1 s" in (place / "errors").read_text()


def test_without_a_setting_the_patience_is_an_hour(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENSLIP_EVAL_PATIENCE", raising=False)
    monkeypatch.setenv("SECONDS", "3601")  # bash counts from there, as if the task had waited for this long
    for folder in (place / "run" / "checkpoints", place / "run"):
        os.utime(folder, (1, 1))
    assert start(place, str(place / "run"), "--", "evaluation=one").wait(20) == 1
    assert f"error: nothing in {place / 'run'} has changed for 3600 s" in (place / "errors").read_text()


def test_a_task_without_a_checkpoint_says_how_to_submit(place: Path):
    process = start(place, "a.ckpt", "--", "evaluation=one", task=1)
    assert process.wait(20) == 1
    said = (place / "errors").read_text()
    assert "error: task 1 of the array and 1 checkpoints: sbatch --array=0-LAST" in said
