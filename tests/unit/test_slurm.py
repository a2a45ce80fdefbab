"""Processes that are no tasks, or other ones than the run asks for, are refused in one line."""

from typing import Any

import pytest

from openslip.config.compose import compose_config
from openslip.errors import UserError
from openslip.slurm import check_tasks

NOT_SRUN = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "openslip", "SLURM_NNODES": "2"}
EIGHT = {**NOT_SRUN, "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}
ONE = {**NOT_SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NNODES": "1"}


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*EIGHT, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def under(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """The trainer's config as composed there."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return compose_config("train", list(arguments))[0]["trainer"]


def test_nodes_and_tasks_come_from_slurm(monkeypatch: pytest.MonkeyPatch):
    trainer = under(monkeypatch, EIGHT, "trainer=slurm")
    assert (trainer["num_nodes"], trainer["devices"]) == (2, 4)
    check_tasks(trainer)


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_a_shell_in_a_job_starts_its_ranks_itself(monkeypatch: pytest.MonkeyPatch, name: str):
    check_tasks(under(monkeypatch, {**ONE, "SLURM_JOB_NAME": name}, "trainer=ddp", "trainer.devices=4"))


def test_one_process_of_one_task_needs_no_trainer_of_its_own(monkeypatch: pytest.MonkeyPatch):
    check_tasks(under(monkeypatch, ONE, "trainer=cpu"))


@pytest.mark.parametrize(
    ("environment", "arguments", "said"),
    [
        ({}, ["trainer=slurm"], "SLURM did not start this process"),
        (NOT_SRUN, ["trainer=slurm"], "srun python train.py"),
        ({**ONE, "SLURM_STEP_NUM_TASKS": "2"}, ["trainer=slurm"], "--ntasks-per-node=N instead of --ntasks=N"),
        (EIGHT, ["trainer=auto"], "8 tasks, but trainer.devices=1 x trainer.num_nodes=1 are 1 processes"),
        (EIGHT, ["trainer=slurm", "trainer.devices=8"], "trainer.devices=8 x trainer.num_nodes=2 are 16 processes"),
        (ONE, ["trainer=ddp", "trainer.devices=8"], "1 tasks, but trainer.devices=8"),
        ({**EIGHT, "CUDA_VISIBLE_DEVICES": "3"}, ["trainer=slurm"], "--gpus-per-node=4 instead of --gpus-per-task"),
    ],
)
def test_what_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], arguments: list[str], said: str
):
    trainer = under(monkeypatch, environment, *arguments)
    with pytest.raises(UserError) as refused:
        check_tasks(trainer)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
