"""The batch script of W&B's agents, run by bash with a stand-in for srun."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "slurm" / "wandb_agent.sbatch"


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    stand_in = tmp_path / "srun"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "3"}
    return subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)


def test_each_task_runs_one_agent_for_one_combination(tmp_path: Path):
    done = run(tmp_path, "me/mine/abc")
    assert done.returncode == 0, done.stderr
    command = ["wandb", "agent", "--forward-signals", "--count", "1", "me/mine/abc"]
    assert done.stdout.splitlines() == ["--cpus-per-task=3", *command]


def test_a_script_without_a_sweep_says_how_to_submit_it(tmp_path: Path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert "sbatch --array=0-7 slurm/wandb_agent.sbatch ENTITY/PROJECT/SWEEP" in done.stderr
