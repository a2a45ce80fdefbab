"""Checks that torchrun or mpirun started as many processes as the trainer has; imports nothing slow."""

import os

from openslip.errors import UserError

# Open MPI; MPICH and Intel MPI; MVAPICH; jsrun
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE")


def check_launched(processes: int, nodes: int) -> None:
    """Refuse a trainer with fewer processes than were started, each of which would train the run in the same folder.

    Args:
        processes: number of the trainer's ranks on all nodes.
        nodes: number of the trainer's nodes.
    """
    environment = os.environ
    ranks = [int(environment[key]) + 1 for key in ("RANK", "LOCAL_RANK") if environment.get(key, "").isdecimal()]
    started = int(environment.get("WORLD_SIZE", "0") or 0) or max(ranks, default=0)
    if "LOCAL_RANK" in environment:  # then Lightning starts no processes itself
        complete = "WORLD_SIZE" in environment
        if started > processes or (complete and started != processes):
            raise UserError(
                f"{started} processes were started (torchrun?), {_mismatch(processes, started, environment)}"
            )
    elif started > 1 and started not in (processes, nodes):
        # `nodes` is accepted, because some clusters count nodes, on each of which Lightning starts its ranks.
        raise UserError(f"WORLD_SIZE or RANK names {started} processes, {_mismatch(processes, started, environment)}")
    elif not started:
        _refuse_mpi(environment)


def _mismatch(processes: int, started: int, environment: os._Environ[str]) -> str:
    here = int(environment.get("LOCAL_WORLD_SIZE", "0") or 0) or started
    settings = f"trainer=ddp trainer.devices={here}" if started > 1 else "trainer.devices=1"
    if started > here:
        settings += f" trainer.num_nodes={started // here}"
    return f"and the trainer has {processes}: add {settings}, or start it by `python` alone"


def _refuse_mpi(environment: os._Environ[str]) -> None:
    """Refuse processes started by mpirun, because Lightning does not recognise its ranks."""
    for key in MPI_SIZES:
        started = environment.get(key, "1")
        if started != "1" and "SLURM_STEP_NUM_TASKS" not in environment:  # srun sets PMI_SIZE as well
            raise UserError(
                f"mpirun started {started} processes ({key}), which would each train the whole run: use "
                f"`torchrun --nproc_per_node {started} train.py ...` with trainer=ddp trainer.devices={started}, or "
                "these settings by `python` alone"
            )
