"""Whether the processes that a run asks for are the tasks that SLURM started."""

import os
from typing import Any

from openslip.errors import UserError


def check_tasks(trainer: dict[str, Any]) -> None:
    """Refuses what does not fit, because ranks that never come are waited for.

    Args:
        trainer: the config group; one that brings SLURM as its `cluster_environment` takes its ranks from there.
    """
    environment = os.environ
    strategy = trainer["strategy"]
    from_slurm = isinstance(strategy, dict) and strategy.get("cluster_environment") is not None
    if "SLURM_STEP_NUM_TASKS" not in environment:  # only srun sets it
        if not from_slurm:
            return
        if "SLURM_JOB_ID" in environment:
            raise UserError("trainer=slurm without srun: write `srun python train.py ...`, as slurm/train.sbatch does")
        raise UserError(
            "trainer=slurm, but SLURM did not start this process: `sbatch slurm/train.sbatch SETTINGS`, "
            "or trainer=ddp for this machine alone"
        )
    if environment.get("SLURM_JOB_NAME") in ("bash", "interactive") and not from_slurm:
        return  # a shell in a job, where Lightning starts the ranks as it does elsewhere
    tasks, devices, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), trainer["devices"], trainer["num_nodes"]
    if from_slurm and tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environment:
        raise UserError(
            f"SLURM started {tasks} tasks, and how many per node was not said: give sbatch or srun "
            "--ntasks-per-node=N instead of --ntasks=N"
        )
    if isinstance(devices, int) and devices > 0 and devices * nodes != tasks:
        raise UserError(
            f"SLURM started {tasks} tasks, but trainer.devices={devices} x trainer.num_nodes={nodes} are "
            f"{devices * nodes} processes: use trainer=slurm, which takes them from SLURM, with --ntasks-per-node=GPUS"
        )
    gpus = environment.get("CUDA_VISIBLE_DEVICES")
    if gpus and trainer["accelerator"] != "cpu" and isinstance(devices, int) and len(gpus.split(",")) < devices:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES={gpus}, but {devices} tasks of a node need {devices} GPUs that each of them sees: "
            f"give sbatch --gpus-per-node={devices} instead of --gpus-per-task"
        )
