"""`openslip reproduce` of values that are not finite, unfinished runs, parts of a test set, and missing data."""

import csv
import json
import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from ladder_runs import CONFIG, STEPS, write_run

from openslip import signals
from openslip.__main__ import run
from openslip.commands import reproduce
from openslip.errors import UserError
from openslip.evaluation import stored
from openslip.reproduce.comparison import Comparison, compare
from openslip.reproduce.curves import Recorded
from openslip.reproduce.finished import read_run, record
from openslip.reproduce.rungs import Entry, Figure

TOP1 = "eval/builtin/top1"
ENTRY = Entry("a", (), {TOP1: Figure("accuracy", 1450)})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Three recorded seeds."""
    folder = tmp_path_factory.mktemp("recorded")
    runs = [write_run(folder / str(seed), seed, top1=79.0 + seed) for seed in range(3)]
    return record(runs, ENTRY, CONFIG)


def compared(folder: Path, recorded: Recorded) -> Comparison:
    return compare(read_run(folder, ENTRY), ENTRY, recorded.config, recorded)


def log(folder: Path, steps: Sequence[int], column: str, value: float) -> None:
    """Replace the values that a run has logged in a column at some steps."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    for row in rows:
        row |= {column: str(value)} if int(row["step"]) in steps else {}
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("steps", "where"),
    [([500], "steps 441 to 550"), (range(500, STEPS + 1), "steps 441 to 550"), (range(STEPS + 1), "steps 1 to 110")],
)
def test_a_loss_that_is_not_finite_deviates_and_is_located(
    value: float, steps: Sequence[int], where: str, recorded: Recorded, tmp_path: Path
):
    folder = write_run(tmp_path / "run", 5)
    assert not compared(folder, recorded).deviates
    log(folder, steps, "train/loss", value)
    rows = {row.name: row for row in compared(folder, recorded).rows}
    assert [name for name, row in rows.items() if row.deviates] == ["train/loss"]
    assert rows["train/loss"].where == where


@pytest.mark.parametrize("column", ["train/clip_loss", TOP1])
def test_values_that_are_not_finite_are_not_recorded(column: str, tmp_path: Path):
    runs = [write_run(tmp_path / str(seed), seed) for seed in range(3)]
    log(runs[1], [STEPS], column, math.nan)
    with pytest.raises(UserError, match=f"/1 has values of {column} that are not finite"):
        record(runs, ENTRY, CONFIG)


def test_an_early_evaluation_of_an_unfinished_run_is_no_deviation(recorded: Recorded, tmp_path: Path):
    folder = write_run(tmp_path / "run", 5, top1=20.0)
    assert compared(folder, recorded).deviates
    (folder / "result.json").unlink()
    comparison = compared(folder, recorded)
    assert not comparison.deviates
    assert {row.name for row in comparison.rows} == {"train/loss", "train/clip_loss", "train/lr"}


def stored_result(**changes: Any) -> dict[str, Any]:
    """A result that `openslip eval` stores, of the checkpoint at the last step."""
    result = {"evaluation": "builtin", "checkpoint": "last.ckpt", "step": STEPS, "metrics": {"top1": 58.0}}
    return result | {"headline_metric": "top1", "config": {}, "notes": {}, "problems": []} | changes


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"notes": {"C": "0.3"}}, True),
        ({"notes": {"samples": "100 of 1450"}}, False),
        ({"notes": {"classes": "8 of 10"}}, False),
        ({"problems": ["2 images cannot be read"]}, False),
    ],
)
def test_a_stored_result_of_a_part_of_the_test_set_is_no_figure(changes: dict[str, Any], counts: bool, tmp_path: Path):
    folder = write_run(tmp_path / "run", 5, top1=None)
    place = folder / stored.FOLDER / "last"
    stored.write(place, json.loads(json.dumps(stored_result(**changes))), {})
    assert read_run(folder, ENTRY).columns.get(TOP1) == ({STEPS: 58.0} if counts else None)


def test_a_run_that_evaluates_a_part_of_the_test_set_deviates_and_is_not_recorded(recorded: Recorded, tmp_path: Path):
    runs = [write_run(tmp_path / str(seed), seed, {"evaluation_samples": 64}) for seed in range(3)]
    comparison = compared(runs[0], recorded)
    assert (comparison.settings, comparison.deviates) == (["evaluation_samples: 64, expected None"], True)
    with pytest.raises(UserError, match="is not a run of a: evaluation_samples: 64, expected None"):
        record(runs, ENTRY, CONFIG)
    whole = write_run(tmp_path / "whole", 5, {"evaluation_samples": None})
    assert compared(whole, recorded).settings == []


def test_of_an_unfinished_run_without_stored_curves_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(reproduce, "curves_folder", lambda: tmp_path / "no curves")
    monkeypatch.setattr(reproduce, "config_of", lambda settings: deepcopy(CONFIG))
    folder = write_run(tmp_path / "run", 5, steps=470)
    assert run(["reproduce", "cc3m_clip_vitb16_40ep", "--run", str(folder)]) == 1
    assert "is logged up to step 470, and only its result is compared, once it is finished" in capsys.readouterr().err


def test_what_a_run_needs_is_printed_before_its_data_are_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def without_data(settings: list[str]) -> dict[str, Any]:
        raise UserError("vectors.txt: no such file")

    monkeypatch.setattr(reproduce, "config_of", without_data)
    monkeypatch.setattr(signals, "catch", lambda: None)
    assert run(["reproduce", "laptop_lit"]) == 1
    printed = capsys.readouterr()
    assert "needs: openclipart, efficientnet_lite0 and glove_6b_50d of" in printed.out
    assert "vectors.txt: no such file" in printed.err
