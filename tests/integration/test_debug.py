"""`debug=overfit`, `profile` and `fast`, on the smallest model."""

import csv
import json
from pathlib import Path

import pytest
from trainings import EVALUATED, SMALL, Training

RUN = [*SMALL, "data.source.shards=0.tar"]


def losses(run_folder: Path) -> list[float]:
    with (run_folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_a_fast_run_trains_evaluates_and_reports(place: Path):
    training = Training(place, *RUN, *EVALUATED, "debug=fast", "evaluation_samples=7", log="fast", REPORT="1")
    assert training.wait() == 0, training.said()
    said = training.said()
    assert "step 2/2  loss" in said
    assert "long: only 7 of 100 samples are used" in said
    assert "report: runs/debug_fast/report.html" in said
    assert said.endswith("  openslip report runs/debug_fast\n")
    folder = place / "runs" / "debug_fast"
    assert json.loads((folder / "result.json").read_text())["metrics"]["long"]
    assert len(losses(folder)) == 2


@pytest.mark.slow
def test_a_profile_is_named_at_the_end(place: Path):
    training = Training(place, *RUN, "debug=profile", "evaluation=none", log="profile")
    assert training.wait() == 0, training.said()
    lines = [line.removeprefix("profile: ") for line in training.said().splitlines() if line.startswith("profile: ")]
    assert [Path(line).parent for line in lines] == 2 * [Path("runs/debug_profile/profile")]
    trace, table = sorted((place / line for line in lines), key=lambda path: path.suffix)
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::mm" in names
    assert "CPU time" in table.read_text()


@pytest.mark.slow
def test_one_batch_that_is_repeated_is_learnt(place: Path):
    shape = ["model.image_tower.arguments.embed_dim=48", "model.text_tower.width=32", "model.embed_dim=32"]
    words = [
        *RUN,
        *shape,
        "debug=overfit",
        "optim.lr=3e-3",
        "trainer.max_steps=100",
        "callbacks.metrics.every_n_steps=99",
    ]
    training = Training(place, *words, log="overfit")
    assert training.wait() == 0, training.said()
    first, *_, last = losses(place / "runs" / "debug_overfit")
    assert first > 5
    assert last < 1  # a model this small still improves when the run ends
