"""The entry points as a user starts them: training, evaluation from the checkpoint, two ranks, and their mistakes."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import dashboard_panels
import pytest
import yaml

from openslip import __version__
from openslip.commands import eval as evaluate
from openslip.commands import train
from openslip.errors import run_entry_point

ROOT = Path(__file__).parents[2]
SHORT = ["trainer=cpu", "trainer.precision=32-true", "callbacks.metrics.every_n_steps=1", "optim.warmup_steps=2"]


def run(entry: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / entry), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="module")
def trained(workplace: Path) -> Path:
    """A short SLIP run."""
    done = run("train.py", *SHORT, "trainer.max_steps=12", "name=short", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "report: runs/short/report.html"
    assert done.stdout.splitlines()[-2].startswith("zero-shot top-1 (unseen combinations): ")
    return workplace / "runs" / "short"


def test_a_run_leaves_its_files_and_a_falling_loss(trained: Path):
    for name in ("config.yaml", "env.json", "metrics.csv", "checkpoints/last.ckpt", "report.html", "result.json"):
        assert (trained / name).stat().st_size > 0, name
    (start,) = json.loads((trained / "env.json").read_text())["starts"]
    assert start["openslip"] == __version__
    assert start["command"].startswith("train.py trainer=cpu ")
    assert (start["ranks"], start["device"], start["data"]["samples"]) == (1, "cpu", 10240)
    losses = [float(row["train/loss"]) for row in rows(trained)]
    assert len(losses) == 12
    assert losses[-1] < losses[0]


def test_the_dashboard_names_every_metric_and_attribute_of_the_built_in_evaluation(trained: Path):
    logged = {key for row in rows(trained) for key in row if key.startswith("eval/")}
    assert {key for key in dashboard_panels.metrics() if key.startswith("eval/")} <= logged
    assert {key for key in logged if not dashboard_panels.is_shown(key)} == {"eval/builtin/num_samples"}


def test_the_same_command_again_shows_the_result_and_trains_nothing(trained: Path, workplace: Path):
    before = (trained / "metrics.csv").read_bytes()
    done = run("train.py", *SHORT, "trainer.max_steps=12", "name=short", cwd=workplace)
    assert done.returncode == 0
    assert "is finished" in done.stdout
    assert done.stdout.splitlines()[-1] == "report: runs/short/report.html"
    assert (trained / "metrics.csv").read_bytes() == before


def test_evaluation_from_the_checkpoint_prints_the_figure_of_training(trained: Path, workplace: Path):
    done = run("eval_zeroshot.py", "checkpoint=runs/short", "output=figures.json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    trained_figures = json.loads((trained / "result.json").read_text())
    assert trained_figures["lines"][0] in done.stdout.splitlines()
    assert json.loads((workplace / "figures.json").read_text())["metrics"] == trained_figures["metrics"]


@pytest.mark.slow
def test_every_evaluation_of_the_built_in_dataset_runs_and_is_shown(trained: Path, workplace: Path):
    done = run("eval_zeroshot.py", "checkpoint=runs/short", "evaluation=all", "feature_cache=null", cwd=workplace)
    assert done.returncode == 0, done.stderr
    written = {path.stem: json.loads(path.read_text()) for path in trained.glob("evaluations/step-000012/*.json")}
    assert {"builtin", "builtin_knn"} <= written.keys()
    trained_metrics = json.loads((trained / "result.json").read_text())["metrics"]
    assert written["builtin"]["metrics"] == trained_metrics["builtin"]
    done = subprocess.run(
        [sys.executable, "-m", "openslip", "report", "runs/short"], cwd=workplace, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(f"Evaluation {name}" in (trained / "report.html").read_text() for name in written)


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", str(ROOT / "train.py"), *SHORT[1:], "trainer.max_steps=2", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_torchrun_trains_one_run_of_its_ranks_or_is_told_how(workplace: Path):
    settings = ["trainer.accelerator=cpu", "evaluation=none", "name=torchrun"]
    done = torchrun(*settings, cwd=workplace)
    assert done.returncode == 1
    assert "add trainer=ddp trainer.devices=2" in done.stderr
    assert not (workplace / "runs" / "torchrun").exists()
    done = torchrun("trainer=ddp", "trainer.devices=2", *settings, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert len(rows(workplace / "runs" / "torchrun")) == 2


def test_two_ranks_log_the_losses_of_one_process(trained: Path, workplace: Path):
    two = [
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        *SHORT[1:],
        "trainer.max_steps=12",
        "name=two",
    ]
    done = run("train.py", *two, cwd=workplace)
    assert done.returncode == 0, done.stderr
    for one, other in zip(rows(trained), rows(workplace / "runs" / "two"), strict=True):
        assert float(other["train/loss"]) == pytest.approx(float(one["train/loss"]), rel=1e-4)
    one_figures, two_figures = (
        json.loads((workplace / "runs" / name / "result.json").read_text())["metrics"]["builtin"]
        for name in ("short", "two")
    )
    assert two_figures["num_samples"] == one_figures["num_samples"]


@pytest.mark.slow
def test_the_same_seed_under_two_names_gives_identical_losses(trained: Path, workplace: Path):
    done = run("train.py", *SHORT, "trainer.max_steps=12", "name=again", "evaluation=none", cwd=workplace)
    assert done.returncode == 0, done.stderr
    columns = ("step", "samples_seen", "train/loss", "train/clip_loss", "train/ssl_loss", "train/logit_scale")
    for one, other in zip(rows(trained), rows(workplace / "runs" / "again"), strict=True):
        assert [one[column] for column in columns] == [other[column] for column in columns]


@pytest.mark.slow
def test_micro_batches_log_the_losses_of_whole_batches(trained: Path, workplace: Path):
    split = ["trainer.max_steps=12", "name=split", "evaluation=none", "micro_batch_size=24"]
    checkpointed = [f"towers.{kind}.gradient_checkpointing=true" for kind in ("image", "text")]
    done = run("train.py", *SHORT, *split, *checkpointed, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "data: 10240 samples"
    for one, other in zip(rows(trained), rows(workplace / "runs" / "split"), strict=True):
        assert float(other["train/loss"]) == pytest.approx(float(one["train/loss"]), rel=1e-4)


def test_sigterm_to_the_launching_process_ends_two_ranks_after_the_same_step(workplace: Path):
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", *SHORT[1:]]
    arguments = [*two, "trainer.max_steps=4000", "name=stopped", "evaluation=none"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=workplace, stderr=subprocess.PIPE, text=True
    )
    metrics = workplace / "runs" / "stopped" / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 4:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    step = int(rows(metrics.parent)[-1]["step"])
    assert f"stopped by SIGTERM after step {step}, saved" in said
    assert (metrics.parent / "checkpoints" / f"step-{step:06}.ckpt").exists()


def mistakes(workplace: Path) -> dict[tuple[str, ...], list[str]]:
    (workplace / "no.ckpt").write_text("not a checkpoint")
    return {
        ("train.py", "model=slip_vitb17"): ["model=slip_vitb17", "slip_vitb16"],
        ("train.py", "trainer.max_stpes=3"): ["trainer.max_stpes", "trainer.max_steps"],
        ("train.py", "global_batch_size=many"): ["global_batch_size=many", "expected a number"],
        ("train.py", "trainer.max_steps=-1"): ["trainer.max_steps=-1", "at least 1"],
        ("train.py", "towers.text.locked=maybe"): ["towers.text.locked=maybe", "true or false"],
        ("train.py", "data=webdataset"): ["data.source.shards"],
        ("train.py", "data=webdataset", "data.source.shards=nowhere.tar"): ["nowhere.tar"],
        ("train.py", "name=short", "trainer.max_steps=13"): ["runs/short", "optim.warmup_steps: 2 in the run, now 50"],
        ("eval_zeroshot.py", "checkpoint=no.ckpt"): ["no.ckpt"],
        ("eval_zeroshot.py", "checkpoint=runs/nowhere"): ["runs/nowhere"],
        ("eval_zeroshot.py",): ["checkpoint"],
    }


ENTRIES = {"train.py": train.main, "eval_zeroshot.py": evaluate.main}


@pytest.mark.parametrize("number", range(11))
def test_a_mistake_is_one_line_that_names_it(
    trained: Path, workplace: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (entry, *arguments), said = list(mistakes(workplace).items())[number]
    monkeypatch.chdir(workplace)
    assert run_entry_point(ENTRIES[entry], arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    for word in said:
        assert word in error


def test_a_traceback_only_with_debug(capsys: pytest.CaptureFixture[str]):
    for words in ([], ["debug=true"]):
        assert run_entry_point(train.main, ["model=slip_vitb17", *words]) == 1
        assert ("Traceback" in capsys.readouterr().err) is bool(words)


@pytest.mark.slow
def test_a_sweep_makes_one_run_for_each_combination(workplace: Path):
    sweep = [*SHORT, "trainer.max_steps=2", "evaluation=none", "seed=3,4", "runs_dir=swept"]
    command = [sys.executable, "-m", "openslip", "sweep", *sweep]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    configs = [yaml.safe_load(path.read_text()) for path in (workplace / "swept").glob("*/config.yaml")]
    assert sorted(config["seed"] for config in configs) == [3, 4]
    assert all(rows(path.parent)[-1]["step"] == "2" for path in (workplace / "swept").glob("*/result.json"))


@pytest.mark.slow
def test_options_of_the_step_are_the_same_on_two_ranks_in_micro_batches(workplace: Path):
    options = ["optim.clip_norm=0.5", "optim.layer_decay=0.8", "optim.ema_decay=0.9", "trainer.max_steps=4"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "micro_batch_size=9", *SHORT[1:]]
    for name, hardware in (("plain-options", SHORT), ("two-options", two)):
        done = run("train.py", *hardware, *options, f"name={name}", cwd=workplace)
        assert done.returncode == 0, done.stderr
    one_rows, two_rows = (rows(workplace / "runs" / name) for name in ("plain-options", "two-options"))
    for one, other in zip(one_rows, two_rows, strict=True):
        for key in ("train/loss", "train/gradient_norm"):
            assert float(other[key]) == pytest.approx(float(one[key]), rel=1e-4)
    done = run("eval_zeroshot.py", "checkpoint=runs/plain-options", "output=averaged.json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    trained = json.loads((workplace / "runs" / "plain-options" / "result.json").read_text())["metrics"]
    assert json.loads((workplace / "averaged.json").read_text())["metrics"] == trained
    assert "speed/data_wait_percent" in one_rows[0]
