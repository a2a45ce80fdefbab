"""What docs/ADDING.md shows works as it stands, in a folder of its own, and touches no existing file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, written where its text says."""
    folder = tmp_path_factory.mktemp("my_project")
    page = (ROOT / "docs" / "ADDING.md").read_text()
    blocks = re.findall(r"`([\w/]+\.(?:py|yaml))`[^`]*?:\n```(?:python|yaml)\n(.*?)```", page, re.DOTALL)
    for name, content in blocks:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    assert len(blocks) == 10
    return folder


def train(project: Path, *arguments: str) -> dict:
    command = [sys.executable, str(ROOT / "train.py"), "--config-dir", str(project / "configs"), *arguments]
    runs = project / "runs"
    common = ["trainer=cpu", "trainer.max_steps=2", "global_batch_size=8", "name=toy", f"runs_dir={runs}"]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(
        [*command, *common], env=environment, cwd=project, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    folder = runs / "toy"
    result = json.loads((folder / "result.json").read_text())
    folder.rename(folder.with_name("_".join(arguments).replace("/", "-").replace("=", "-")))
    return result


def test_sigmoid_objective_dataset_tower_and_evaluation_train(project: Path):
    result = train(
        project,
        "model=clip_tiny",
        "objective=sigmoid_pairs",
        "data=coloured_squares",
        "model/tower@model.image_tower=pooled_pixels",
        "evaluation=feature_spread",
        "micro_batch_size=3",
    )
    assert result["step"] == 2
    assert -1 <= result["metrics"]["feature_spread"]["mean_cosine"] <= 1


def test_teacher_with_queue_trains(project: Path):
    result = train(project, "model=simclr_tiny", "objective=teacher_queue", "data=coloured_squares", "evaluation=none")
    assert result["step"] == 2
