"""What `openslip reproduce --run` prints beside the numbers of a comparison."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from ladder_runs import CONFIG, STEPS, write_run

from openslip.reproduce.comparison import LIMIT, Row, compare
from openslip.reproduce.curves import Recorded, read_recorded, write_recorded
from openslip.reproduce.finished import read_run, record
from openslip.reproduce.rungs import Entry, Figure
from openslip.reproduce.table import comparison_lines, digits, in_spreads, row_lines

TOP1 = "eval/builtin/top1"
ENTRY = Entry("a", (), {TOP1: Figure("accuracy on images", 1450, chance=0.7)})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Three recorded seeds, as read from their file."""
    folder = tmp_path_factory.mktemp("recorded")
    runs = [write_run(folder / str(seed), seed, top1=79.0 + seed) for seed in range(3)]
    write_recorded(record(runs, ENTRY, CONFIG), "a", folder)
    stored = read_recorded("a", folder)
    assert stored is not None
    return stored


def printed(folder: Path, recorded: Recorded) -> list[str]:
    run = read_run(folder, ENTRY)
    return [*comparison_lines(compare(run, ENTRY, CONFIG, recorded), run, ENTRY, recorded)]


def change(folder: Path, edit: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Rewrite the rows of a run's `metrics.csv`."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [edit(row) for row in csv.DictReader(file)]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("steps", [STEPS, 470])
def test_a_run_that_repeats_a_stored_seed_says_so(steps: int, recorded: Recorded, tmp_path: Path):
    said = "  its losses are exactly those of the stored seed {}: agreement says little"
    for seed in (0, 2):
        assert said.format(seed) in printed(write_run(tmp_path / str(seed), seed, steps=steps), recorded)
    assert "stored seed " not in "\n".join(printed(write_run(tmp_path / "5", 5, steps=steps), recorded))


def test_one_other_loss_is_enough_to_be_another_run(recorded: Recorded, tmp_path: Path):
    folder = write_run(tmp_path / "run", 0)
    change(
        folder, lambda row: row | ({"train/loss": str(float(row["train/loss"]) + 1e-4)} if row["step"] == "500" else {})
    )
    assert "stored seed " not in "\n".join(printed(folder, recorded))


def test_a_curve_that_the_run_lacks_is_missing(recorded: Recorded, tmp_path: Path):
    folder = write_run(tmp_path / "run", 5, steps=470)
    change(folder, lambda row: {name: cell for name, cell in row.items() if name != "train/clip_loss"})
    assert printed(folder, recorded)[-2:] == [
        "  missing: train/clip_loss",
        "deviates so far; the run is at step 470 and not finished",
    ]


def test_a_run_that_is_too_short_to_compare_says_so(recorded: Recorded, tmp_path: Path):
    folder = write_run(tmp_path / "run", 5, {"trainer.max_steps": 2}, steps=20)
    (folder / "result.json").write_text("{}")
    lines = printed(folder, recorded)
    assert "  no curve is compared: the run has not logged a whole tenth of 1100 steps" in lines
    assert "  another setting: trainer.max_steps: 2, expected 1100" in lines


def test_a_run_of_all_steps_without_a_result_says_so(recorded: Recorded, tmp_path: Path):
    folder = write_run(tmp_path / "run", 5)
    assert "result.json" not in "".join(printed(folder, recorded))
    (folder / "result.json").unlink()
    assert "all 1100 steps are done, and result.json is missing:" in " ".join(
        "\n".join(printed(folder, recorded)).split()
    )


def test_a_figure_says_what_it_measures_and_whether_chance_would_deviate():
    figure = Figure("top-1", 269, chance=2.3)
    for expected, told in ((7.9, "    top-1 (chance 2.3): chance would not deviate"), (47.0, "    top-1 (chance 2.3)")):
        row = Row("eval/a/top1", 8.0, expected, figure.standard_error(expected))
        assert [*row_lines(row, figure)][1:] == [told]


@pytest.mark.parametrize("difference", [4.949, 4.951, 4.99999, LIMIT, 5.00004, 5.0004, 5.004, 5.04, 5.06, 69.1, 0.02])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_looks_larger_than_the_limit_exactly_if_it_deviates(difference: float, sign: int):
    text = in_spreads(sign * difference)
    if abs(difference - LIMIT) > 1e-4 or difference == LIMIT:
        assert (abs(float(text)) > LIMIT) == Row("a", sign * difference, 0.0, 1.0).deviates
    assert float(text) == pytest.approx(sign * difference, abs=0.05 + 1e-9)
    assert not re.fullmatch(r"-0\.0+", text)
    assert len(text) <= 7


def test_numbers_keep_their_digits():
    assert [digits(value, 4) for value in (15.0, 0.0, 1.487, 1234.0, 1e-6, 0.00016861)] == [
        *("15.00", "0.000", "1.487", "1234", "1.000e-06", "0.0001686")
    ]
