"""`data.num_workers: auto` is a rank's share of the cores, however its processes were started."""

from pathlib import Path
from typing import Any

import pytest
from data_modules import data_module
from numbered import Numbered

from openslip.data import workers
from openslip.data.workers import cores_of_rank, number_of_workers
from openslip.errors import UserError

STEP = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("environment", "cores", "local_ranks", "share"),
    [
        ({}, 16, 1, 16),
        ({}, 96, 8, 12),  # torchrun, or Lightning's own processes
        ({}, 2, 8, 1),
        (STEP | {"SLURM_CPUS_PER_TASK": "12", "SLURM_CPUS_ON_NODE": "96"}, 12, 8, 12),  # tasks bound to their cores
        (STEP | {"SLURM_CPUS_PER_TASK": "12", "SLURM_CPUS_ON_NODE": "96"}, 128, 8, 12),  # not bound
        (STEP | {"SLURM_CPUS_ON_NODE": "96"}, 128, 8, 12),  # neither bound nor said
        (STEP | {"SLURM_CPUS_ON_NODE": "96"}, 12, 8, 12),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "96"}, 96, 8, 12),
        ({"SLURM_CPUS_PER_TASK": "96"}, 96, 8, 12),  # a batch script without srun
    ],
)
def test_a_rank_has_its_share_of_the_cores(environment: dict[str, str], cores: int, local_ranks: int, share: int):
    assert cores_of_rank(environment, cores, local_ranks) == share


@pytest.mark.parametrize(
    ("cores", "on_gpu", "expected"),
    [
        (12, True, 10),
        (3, True, 1),
        (2, True, 1),
        (1, True, 1),
        (192, True, 24),
        (1, False, 0),
        (2, False, 0),
        (3, False, 1),
        (64, False, 2),
    ],
)
def test_auto_leaves_two_cores_to_the_process_that_trains(
    monkeypatch: pytest.MonkeyPatch, cores: int, on_gpu: bool, expected: int
):
    monkeypatch.setattr(workers, "affinity", lambda: cores)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    assert number_of_workers("auto", 1, on_gpu=on_gpu) == expected


@pytest.mark.parametrize(("granted", "cores"), [("800000 100000", 8), ("50000 100000", 1), ("max 100000", 64)])
def test_a_container_has_the_cores_of_its_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, granted: str, cores: int
):
    (tmp_path / "cpu.max").write_text(f"{granted}\n")
    monkeypatch.setattr(workers, "CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: set(range(64)))
    assert workers.affinity() == cores


def test_a_number_of_workers_is_taken_as_it_is():
    assert [number_of_workers(number, 8, on_gpu=True) for number in (0, 3)] == [0, 3]


@pytest.mark.parametrize("setting", [-1, True, "many"])
def test_what_is_no_number_of_workers_is_refused_by_its_name(setting: Any):
    with pytest.raises(UserError, match=rf"data\.num_workers={setting}: expected a whole number of 0 or more, or auto"):
        data_module(Numbered(12), num_workers=setting)


@pytest.mark.parametrize("setting", [0, -1])
def test_no_memory_at_all_is_refused_by_its_name(setting: float):
    with pytest.raises(UserError, match=rf"data\.prefetch_gb={setting}: expected more than 0"):
        data_module(Numbered(12), prefetch_gb=setting)
