"""Processes that are no tasks, or other ones than the run asks for, are refused in one line; one job is requeued."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from openslip import slurm
from openslip.commands import train
from openslip.config.compose import compose_config
from openslip.errors import UserError
from openslip.launcher import MPI_SIZES, check_launched
from openslip.slurm import check_tasks, requeue

NOT_SRUN = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "openslip", "SLURM_NNODES": "2"}
EIGHT = {**NOT_SRUN, "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}
ONE = {**NOT_SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NNODES": "1"}

TORCHRUN = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
ONE_OF_TORCHRUN = {**TORCHRUN, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*EIGHT, *TORCHRUN, "CUDA_VISIBLE_DEVICES", "NODE_RANK", *MPI_SIZES):
        monkeypatch.delenv(name, raising=False)


def under(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """The trainer's config as composed there."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return compose_config("train", list(arguments))[0]["trainer"]


def test_the_signal_before_the_time_limit_reaches_every_task():
    script = (Path(__file__).parents[2] / "slurm" / "train.sbatch").read_text()
    (announced,) = re.findall(r"^#SBATCH --signal=(\S+)", script, re.MULTILINE)
    assert announced == "USR1@300"  # with `B:`, sbatch signals the script alone


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


@pytest.mark.parametrize(
    ("environment", "processes", "nodes", "said"),
    [
        (
            TORCHRUN,
            1,
            1,
            "2 processes were started (torchrun?), and the trainer has 1: add trainer=ddp trainer.devices=2",
        ),
        (TORCHRUN, 4, 1, "the trainer has 4: add trainer=ddp trainer.devices=2,"),
        ({**TORCHRUN, "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 1, 1, "trainer.devices=8 trainer.num_nodes=2"),
        (ONE_OF_TORCHRUN, 2, 1, "the trainer has 2: add trainer.devices=1"),
        ({"RANK": "1", "LOCAL_RANK": "1"}, 1, 1, "trainer=ddp trainer.devices=2"),
        ({"RANK": "1"}, 1, 1, "names 2 processes"),
        ({"WORLD_SIZE": "2"}, 1, 1, "names 2 processes, and the trainer has 1"),
        *(({key: "2"}, 2, 1, f"mpirun started 2 processes ({key})") for key in MPI_SIZES),
        *(({key: "2"}, 1, 1, "with trainer=ddp trainer.devices=2") for key in MPI_SIZES),
    ],
)
def test_processes_that_are_not_the_trainers_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], processes: int, nodes: int, said: str
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        check_launched(processes, nodes)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("environment", "processes", "nodes"),
    [
        ({}, 1, 1),
        ({}, 8, 1),
        (ONE_OF_TORCHRUN, 1, 1),
        (TORCHRUN, 2, 1),
        ({"LOCAL_RANK": "0"}, 4, 2),  # a cluster that names ranks alone
        ({"WORLD_SIZE": "1", "RANK": "0"}, 8, 1),  # Kubernetes: a single pod, in which Lightning starts the ranks
        ({"WORLD_SIZE": "2", "RANK": "1", "NODE_RANK": "1"}, 16, 2),  # its pods are nodes
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1, 1),
        ({**TORCHRUN, "OMPI_COMM_WORLD_SIZE": "2"}, 2, 1),  # mpirun by a script that names the ranks as torchrun does
        ({"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "2"}, 2, 1),
    ],
)
def test_processes_that_are_the_trainers_train(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], processes: int, nodes: int
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launched(processes, nodes)


def test_torchrun_inside_srun_counts_its_own_processes(monkeypatch: pytest.MonkeyPatch):
    check_tasks(under(monkeypatch, {**EIGHT, **TORCHRUN}, "trainer=ddp", "trainer.devices=2"))


def test_every_process_of_torchrun_refuses_a_trainer_of_one(monkeypatch: pytest.MonkeyPatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"add trainer=ddp trainer\.devices=2"):
        train.main(["trainer=cpu"])
    with pytest.raises(UserError, match=r"add trainer=ddp trainer\.devices=2"):
        train.main(["trainer=cpu", "trainer.devices=auto"])


def test_a_task_of_an_array_requeues_itself_and_not_the_array(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, ...]] = []

    def answer(*words: str) -> str:
        asked.append(words)
        return "JobState=RUNNING Requeue=1 PreemptTime=None"

    monkeypatch.setattr(slurm, "ask", answer)
    for name, value in {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}.items():
        monkeypatch.setenv(name, value)
    requeue(signal.SIGUSR1)
    assert asked == [("show", "job", "7_2"), ("requeue", "7_2")]
