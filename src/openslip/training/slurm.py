"""Puts a SLURM job back into its queue."""

import os
import re
import subprocess
import sys


def requeue() -> None:
    """Asks the scheduler for it where this is a batch job that may be requeued; SLURM then ends the job itself.

    After SIGTERM nothing is to be asked: SLURM requeues a job that it pre-empts, and one that was cancelled stays so.
    """
    environment = os.environ
    if "SLURM_JOB_ID" not in environment:
        return
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=60, check=True)
        if not re.search(r"\bRequeue=1\b", shown.stdout):
            sys.stderr.write(f"job {job} may not be requeued (sbatch --requeue allows it): submit it again\n")
            return
        subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=True)
        sys.stderr.write(f"job {job} is queued again\n")
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"job {job} could not be requeued ({error.stderr.strip()}): submit it again\n")
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"job {job} could not be requeued ({error}): submit it again\n")
