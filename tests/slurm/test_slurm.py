"""Jobs under a real scheduler: the same weights as without, pre-emption, arrays, sweeps, and mistakes."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shard_files import write_pairs
from slurm_cluster import PATH, ROOT, Cluster, Job, wait_until
from trainings import SMALL, Training, two_ranks, weights_hash

from openslip.commands.eval import main as evaluate
from openslip.inference.files import read
from openslip.run.checkpoints import newest_whole

pytestmark = pytest.mark.slurm

RUN = [*(word for word in SMALL if word != "trainer=cpu"), "trainer.accelerator=cpu"]
TWO_TASKS = ["--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--time=10"]
ONE_TASK = ["--gpus-per-node=1", "--cpus-per-task=1", "--time=5"]
SLOW = ["+callbacks.slow._target_=slow_steps.SlowSteps", "+callbacks.slow.seconds=0.1"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "0.tar", 100)
    return tmp_path


def in_place(place: Path, *arguments: str) -> list[str]:
    return [*RUN, f"data.source.shards={place}/0.tar", f"runs_dir={place}/runs", *arguments]


def submit(cluster: Cluster, place: Path, *arguments: str, options: list[str] = TWO_TASKS) -> Job:
    return cluster.submit(place, *options, "slurm/train.sbatch", *in_place(place, *arguments))


def steps_logged(run_folder: Path) -> list[int]:
    if not (run_folder / "metrics.csv").exists():
        return []
    with (run_folder / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def weights_without_slurm(place: Path, *arguments: str) -> str:
    """Of two ranks that are started as torchrun does."""
    ranks = two_ranks(place, *in_place(place, *arguments, "name=without_slurm"))
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].said()
    return weights_hash(place / "runs" / "without_slurm")


def test_a_job_of_two_tasks_equals_two_ranks_without_slurm(cluster: Cluster, place: Path):
    job = submit(cluster, place, "trainer.max_steps=20", "name=job")
    assert job.wait() == "COMPLETED", job.state()
    checkpoint = read(newest_whole(place / "runs" / "job" / "checkpoints").path)
    assert len(checkpoint["callbacks"]["Resume"]["random"]) == 2  # one of each rank
    assert weights_hash(place / "runs" / "job") == weights_without_slurm(place, "trainer.max_steps=20")


def test_five_preemptions_change_nothing(cluster: Cluster, place: Path):
    """By a job of a higher partition, which sends SIGTERM, and by the signal that announces an end, in turns."""
    run = place / "runs" / "job"
    cluster.environment["WANDB_MODE"] = "offline"
    job = submit(cluster, place, *SLOW, "trainer.max_steps=150", "name=job", "logger=wandb")
    for number in range(1, 6):
        begun = len(steps_logged(run))
        wait_until(lambda begun=begun: len(steps_logged(run)) > begun + 3, 120, job.state)
        if number % 2:
            cluster.submit(place, "--partition=high", "--ntasks=8", "--wrap=sleep 1").wait()
        else:
            job.signal("USR1")
        wait_until(lambda number=number: job.shown("Restarts") == str(number), 120, job.state)
        assert len(steps_logged(run)) < 150
    assert job.wait(300) == "COMPLETED", job.state()
    assert job.said().count("stopped by SIGTERM after step") == 3
    assert job.said().count("stopped by SIGUSR1 after step") == 2
    assert job.said().count("is requeued") == 5
    assert steps_logged(run) == list(range(1, 151))
    identifier = (run / "id.txt").read_text().strip()
    parts = [path.name for path in run.glob("wandb/offline-run-*")]
    assert len(parts) == 6
    assert all(part.endswith(f"-{identifier}") for part in parts)
    assert weights_hash(run) == weights_without_slurm(place, "trainer.max_steps=150")


def test_a_signal_during_setup_queues_the_job_again(cluster: Cluster, place: Path):
    job = submit(cluster, place, "trainer.max_steps=5", "name=job")
    wait_until((place / "runs" / "job").exists, 120, job.state)  # the config follows with the first step
    job.signal("USR1")
    assert job.wait() == "COMPLETED", job.state()
    assert "during set-up" in job.said()
    assert job.shown("Restarts") == "1"
    assert steps_logged(place / "runs" / "job") == list(range(1, 6))


def test_it_is_queued_again_by_a_scheduler_that_answers_slowly(
    cluster: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch
):
    slow = place / "slow" / "scontrol"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\nsleep 2\nexec {shutil.which("scontrol", path=PATH)} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setitem(cluster.environment, "PATH", f"{slow.parent}{os.pathsep}{cluster.environment['PATH']}")
    job = submit(cluster, place, "trainer.max_steps=5", "name=job")
    wait_until((place / "runs" / "job").exists, 120, job.state)  # the config follows with the first step
    job.signal("USR1")
    assert job.wait() == "COMPLETED", job.state()
    assert "during set-up" in job.said()
    assert job.shown("Restarts") == "1"


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Cluster, place: Path):
    job = submit(cluster, place, *SLOW, "trainer.max_steps=1000", "name=job")
    wait_until(lambda: len(steps_logged(place / "runs" / "job")) > 2, 120, job.state)
    cluster.run("scancel", str(job.number))
    assert job.wait() == "CANCELLED", job.state()
    saved = newest_whole(place / "runs" / "job" / "checkpoints").step
    assert saved == steps_logged(place / "runs" / "job")[-1]
    assert f"stopped by SIGTERM after step {saved}, saved" in job.said()
    assert "requeued" not in job.said()


def test_the_end_of_the_time_limit_queues_the_job_again(cluster: Cluster, place: Path):
    options = [*TWO_TASKS[:3], "--time=1", "--signal=USR1@20"]  # SLURM may be 60 seconds early
    job = submit(cluster, place, *SLOW, "trainer.max_steps=5000", "name=job", options=options)
    job.wait_for("is requeued")
    assert "stopped by SIGUSR1" in job.said()
    job.wait_for("Resumed at step")
    cluster.run("scancel", str(job.number))
    assert job.wait() == "CANCELLED", job.state()


def test_an_array_evaluates_three_checkpoints(cluster: Cluster, place: Path):
    (place / "names.txt").write_text("".join(f"picture number {number}\n" for number in range(100)))
    runs = [f"{place}/runs/seed{seed}" for seed in range(3)]
    for seed in range(3):
        run = ["trainer.max_steps=10", f"seed={seed}", f"name=seed{seed}"]
        training = Training(place, *in_place(place, *run), log=f"seed{seed}.log")
        assert training.wait() == 0, training.said()
    shards = [f"evaluation.shards.source.shards={place}/0.tar", f"evaluation.shards.classnames={place}/names.txt"]
    settings = ["device=cpu", "evaluation=shards", *shards, "evaluation.shards.num_workers=0"]
    # A run's folder, its link to the newest checkpoint, and a checkpoint itself.
    checkpoints = [runs[0], f"{runs[1]}/checkpoints/last.ckpt", str(newest_whole(Path(runs[2]) / "checkpoints").path)]
    array = cluster.submit(place, "--array=0-2", *ONE_TASK, "slurm/eval_array.sbatch", *checkpoints, "--", *settings)
    assert array.wait() == "COMPLETED COMPLETED COMPLETED", array.state()
    for checkpoint, run in zip(checkpoints, runs, strict=True):
        evaluate([f"checkpoint={checkpoint}", f"output={place}/here.json", *settings])
        stored = json.loads(Path(f"{run}/evaluations/step-000010/shards.json").read_text())
        assert stored["metrics"] == json.loads((place / "here.json").read_text())["metrics"]["shards"]


def test_an_array_evaluates_a_run_while_it_trains_with_two_tasks(
    cluster: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch
):
    (place / "names.txt").write_text("".join(f"picture number {number}\n" for number in range(100)))
    run = place / "runs" / "watched"
    shards = [f"evaluation.shards.source.shards={place}/0.tar", f"evaluation.shards.classnames={place}/names.txt"]
    settings = ["device=cpu", "evaluation=shards", *shards, "evaluation.shards.num_workers=0"]
    settings.append("evaluation.shards.batch_size=7")
    monkeypatch.setitem(cluster.environment, "OPENSLIP_EVAL_SECONDS", "0.5")
    (run / "checkpoints").mkdir(parents=True)
    array = cluster.submit(place, "--array=0-0", *TWO_TASKS, "slurm/eval_array.sbatch", str(run), "--", *settings)
    words = ["trainer.max_steps=12", "callbacks.save.every_n_steps=4", "name=watched"]
    training = Training(place, *in_place(place, *SLOW, *words), log="watched.log")
    assert training.wait() == 0, training.said()
    assert array.wait() == "COMPLETED", array.state()
    written = {path.parent.name for path in run.glob("evaluations/*/shards.json")}
    assert "step-000012" in written
    evaluate([f"checkpoint={run}", f"output={place}/here.json", *settings])
    stored = json.loads((run / "evaluations" / "step-000012" / "shards.json").read_text())
    assert stored["metrics"] == json.loads((place / "here.json").read_text())["metrics"]["shards"]


def test_an_array_longer_than_its_checkpoints_says_so(cluster: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("OPENSLIP_EVAL_SECONDS", "OPENSLIP_EVAL_PATIENCE"):  # task 0 waits for a run that never begins
        monkeypatch.setitem(cluster.environment, name, "1")
    array = cluster.submit(
        place, "--array=0-1", *ONE_TASK, "slurm/eval_array.sbatch", "runs/one", "--", "evaluation=none"
    )
    array.wait()
    assert "error: task 1 of the array and 1 checkpoints" in array.said()


def test_an_evaluation_that_is_no_array_says_so(cluster: Cluster, place: Path):
    job = cluster.submit(place, *ONE_TASK, "slurm/eval_array.sbatch", "runs/one", "--", "evaluation=none")
    assert job.wait() == "FAILED"
    assert "error: this job is no array: sbatch --array=0-0 " in job.said()


def test_a_sweep_submits_one_job_for_each_combination(cluster: Cluster, place: Path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason='pip install "openslip[slurm]" brings it')
    settings = in_place(place, "trainer.max_steps=5", "trainer=slurm", "seed=0,1")
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=5"]
    cluster.run(sys.executable, "-m", "openslip", "sweep", *settings, *launcher)
    runs = [path.parent for path in (place / "runs").glob("*/result.json")]
    assert len({weights_hash(run) for run in runs}) == 2


def test_a_job_of_a_sweep_that_is_signalled_saves_and_goes_on(cluster: Cluster, place: Path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason='pip install "openslip[slurm]" brings it')
    settings = in_place(place, *SLOW, "trainer.max_steps=60", "trainer=slurm", "name=swept", "seed=0")
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=5"]
    command = [sys.executable, "-m", "openslip", "sweep", *settings, *launcher]
    with (place / "job-0.out").open("w") as log:
        sweep = subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=log, stderr=log)
    run = place / "runs" / "swept"
    wait_until(lambda: len(steps_logged(run)) > 3, 120, cluster.logs)
    jobs = cluster.run("squeue", "-h", "-o", "%A").stdout.split()
    job = Job(cluster, int(jobs[0]), place)
    job.signal("USR2")
    wait_until(lambda: job.shown("Restarts") == "1", 120, job.state)
    assert len(steps_logged(run)) < 60
    assert job.wait() == "COMPLETED", job.state()
    assert steps_logged(run) == list(range(1, 61))
    assert sweep.wait(60) == 0, (place / "job-0.out").read_text()


@pytest.mark.parametrize(
    ("command", "processes", "said"),
    [
        (["srun", "--ntasks=2"], 2, "SLURM started 2 tasks without --ntasks-per-node"),
        ([], 1, "trainer=slurm, but SLURM did not start this process"),
    ],
)
def test_what_slurm_did_not_start_as_asked_says_so_in_one_line(
    cluster: Cluster, place: Path, command: list[str], processes: int, said: str
):
    train = [sys.executable, str(ROOT / "train.py"), "trainer=slurm", *in_place(place)]
    done = cluster.run(*command, *train, check=False)
    assert done.returncode == 1
    beside = ("srun: ", "importing PyTorch: ")  # a slow machine says that it is importing
    errors = [line for line in done.stderr.splitlines() if not line.startswith(beside)]
    assert all(line.startswith(f"error: {said}") for line in errors), done.stderr
    assert len(errors) == processes
    assert not (place / "runs").exists()
