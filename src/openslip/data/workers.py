"""Number of worker processes that decode: given as a number, or `auto`, derived from the cores that a rank may use."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from openslip.errors import UserError

AUTO = "auto"
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
OTHERS = 2  # cores of a rank that are left to the training process and to threads of CUDA, NCCL and the file system
MOST = 24  # CLIP ViT-S/16 on one H200 needs an estimated 21, see docs/DATA.md#speed
MOST_ON_CPU = 2  # training on a CPU is never faster than the decoding of two processes


def check_workers(num_workers: int | str) -> None:
    """Raise UserError unless the setting is a number of processes or `auto`."""
    is_number = isinstance(num_workers, int) and not isinstance(num_workers, bool) and num_workers >= 0
    if not is_number and num_workers != AUTO:
        raise UserError(f"data.num_workers={num_workers}: expected a whole number of 0 or more, or auto")


def number_of_workers(num_workers: int | str, local_ranks: int, *, on_gpu: bool) -> int:
    """Number of worker processes that decode for this rank.

    Args:
        num_workers: the config's `data.num_workers`, a number or `auto`.
        local_ranks: ranks on this machine.
        on_gpu: whether the run trains on a GPU; on a CPU with two cores, a worker slows a step more than it helps.
    """
    if isinstance(num_workers, int):
        return num_workers
    cores = cores_of_rank(os.environ, affinity(), local_ranks)
    if on_gpu:
        return max(1, min(MOST, cores - OTHERS))
    return 0 if cores <= OTHERS else min(MOST_ON_CPU, cores - OTHERS)


def affinity() -> int:
    """Number of cores that this process may use; in a container, at most its CPU quota."""
    known = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(known(0)) if known else os.cpu_count() or 1
    return min(cores, quota(CPU_MAX.read_text())) if CPU_MAX.exists() else cores


def quota(cpu_max: str) -> int:
    """CPU quota of a cgroup in whole cores; `cpu.max` holds quota and period in microseconds, e.g. `800000 100000`."""
    granted, period = cpu_max.split()
    return sys.maxsize if granted == "max" else max(1, int(granted) // int(period))


def cores_of_rank(environment: Mapping[str, str], cores: int, local_ranks: int) -> int:
    """Number of cores of one rank: a SLURM task has its own cores, and other ranks of a machine share all cores.

    SLURM need not bind a task to its cores, so the affinity alone does not tell.

    Args:
        environment: environment variables, with SLURM's if this process belongs to a SLURM task.
        cores: cores that this process may use.
        local_ranks: ranks on this machine.
    """
    tasks = 1
    if "SLURM_STEP_NUM_TASKS" in environment:  # only srun sets it
        on_nodes = int(environment.get("SLURM_STEP_NUM_NODES", 1))
        tasks = max(1, int(environment["SLURM_STEP_NUM_TASKS"]) // on_nodes)  # `srun torchrun`: several ranks per task
        cores = min(cores, int(environment.get("SLURM_CPUS_ON_NODE", cores * tasks)) // tasks)
        cores = min(cores, int(environment.get("SLURM_CPUS_PER_TASK", cores)))
    return max(1, cores // max(1, local_ranks // tasks))
