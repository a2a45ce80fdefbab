"""SLURM: requeues a job and checks its tasks; imports nothing slow, because signal handlers need it early."""

import os
import re
import signal
import subprocess
import time
from typing import Any

from openslip.errors import UserError
from openslip.terminal import notice

ANSWER = 60  # seconds to wait for the scheduler's answer, because many jobs may ask at the same time


def requeue(received: signal.Signals | None) -> None:
    """Requeue the job if this is the first process of a batch job; SLURM then ends the job itself.

    SIGUSR1 and SIGUSR2 announce the end of the time limit or a pre-emption, as requested by `sbatch --signal`. SIGTERM
    comes at a pre-emption without --signal, and when somebody cancels the job, which must then stay cancelled. SLURM
    itself does not requeue a job that exits within the grace time of its pre-emption (measured with 22.05).

    Args:
        received: signal that asked the run to stop; None if it was not a signal.
    """
    environment = os.environ
    if "SLURM_JOB_ID" not in environment or not is_first_task():
        return
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        shown = ask("show", "job", job)
        if not re.search(r"\bJobState=RUNNING\b", shown):  # cancelled, or requeued already
            return
        preempted = re.search(r"\bPreemptTime=(?!None)", shown)
        if received not in (signal.SIGUSR1, signal.SIGUSR2) and not preempted:
            return
        if not re.search(r"\bRequeue=1\b", shown):
            notice(f"job {job} may not be requeued (sbatch --requeue allows it); submit it again")
            return
        ask("requeue", job)
        notice(f"job {job} is requeued")
    except subprocess.CalledProcessError as error:
        notice(f"job {job} could not be requeued ({error.stderr.strip()}); submit it again")
    except (OSError, subprocess.TimeoutExpired) as error:
        notice(f"job {job} could not be requeued ({error}); submit it again")


def was_requeued() -> bool:
    """Whether SLURM has started this job again."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def requeue_alone(received: signal.Signals) -> None:
    """Requeue the job during set-up, when ranks cannot communicate yet; all tasks but the first wait.

    They wait because srun ends all tasks once one has exited.

    Args:
        received: signal that asked to stop; after SIGINT, which a person sends, no task waits.
    """
    requeue(received)
    if "SLURM_JOB_ID" in os.environ and not is_first_task() and received != signal.SIGINT:
        time.sleep(2 * ANSWER + 10)  # SLURM ends this task when the first one has exited


def ask(*words: str) -> str:
    """Run `scontrol` with these arguments and return its output."""
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=ANSWER, check=True).stdout


def is_first_task() -> bool:
    """Whether this process is the first of its run, according to the environment that SLURM, torchrun or others set."""
    return all(os.environ.get(key, "0") == "0" for key in ("SLURM_PROCID", "RANK", "LOCAL_RANK", "NODE_RANK"))


def check_tasks(trainer: dict[str, Any]) -> None:
    """Refuse a trainer whose processes are not the tasks that SLURM started, because it would wait for missing ranks.

    Args:
        trainer: the config group `trainer`; with a `cluster_environment` in its strategy, as in trainer=slurm, ranks
            come from SLURM.
    """
    environment = os.environ
    strategy = trainer["strategy"]
    from_slurm = isinstance(strategy, dict) and strategy.get("cluster_environment") is not None
    if "TORCHELASTIC_RUN_ID" in environment and not from_slurm:
        return  # `srun torchrun`: Lightning takes its ranks from torchrun
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
            f"SLURM started {tasks} tasks without --ntasks-per-node: give sbatch or srun "
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
            f"CUDA_VISIBLE_DEVICES={gpus}, but each of the {devices} tasks of a node must see {devices} GPUs: "
            f"give sbatch --gpus-per-node={devices} instead of --gpus-per-task"
        )
