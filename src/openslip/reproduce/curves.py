"""Stored curves of the ladder's runs: `docs/curves/NAME.csv`, and `NAME.yaml` with the config and the machines.

The CSV file has a row for each seed and logged step: `seed`, `step`, what is logged in training (losses, learning
rate, logit scale), and the run's figures, which are empty except where they were evaluated.
"""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from openslip.durable import needed, write_text
from openslip.errors import UserError
from openslip.reproduce.rungs import Entry

# The learning rate is the same for all seeds, and the rise of the logit scale depends on it more than on the seed.
LOSS = "train/loss"
LOGGED = (LOSS, "train/lr", "train/logit_scale")
LOSS_TERM = "_loss"  # end of the names of the terms of the loss

Columns = dict[str, dict[int, float]]  # by column, the value at each step


class Recorded(NamedTuple):
    """What is stored of a run's seeds.

    Attributes:
        curves: columns by seed.
        config: settings that identify the run, by dotted key, without those of `finished.LOCAL`.
        runs: for each seed, where and when it ran.
    """

    curves: dict[int, Columns]
    config: dict[str, Any]
    runs: list[dict[str, Any]]

    def figures(self, entry: Entry, column: str) -> list[float]:
        """Return the value of a result, such as an accuracy, for each seed that has it."""
        values = (final(columns, column, best=entry.best) for columns in self.curves.values())
        return [value for value in values if value is not None]

    def minutes(self) -> float | None:
        """Return the minutes of training, mean of the runs; None if they did not measure them."""
        seconds = [run["seconds"] for run in self.runs if run["seconds"] is not None]
        return statistics.mean(seconds) / 60 if seconds else None


def final(columns: Columns, column: str, *, best: bool) -> float | None:
    """Return the last value of a column, or the best one; None if it has none."""
    values = columns.get(column) or {}
    if not values:
        return None
    return max(values.values()) if best else values[max(values)]


def curves_folder() -> Path:
    """Return the folder of stored curves: that of the installed package, or else `docs/curves` of the repository."""
    packaged = Path(__file__).parents[1] / "curves"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "docs" / "curves"


def read_recorded(name: str, folder: Path) -> Recorded | None:
    """Read what is stored of a run of the ladder; None if nothing is.

    Args:
        name: name of the run.
        folder: folder of stored curves.

    Raises:
        UserError: the files cannot be read.
    """
    file = folder / f"{name}.csv"
    if not file.is_file():
        return None
    try:
        curves: dict[int, Columns] = {}
        with file.open(newline="", encoding="utf-8") as content:
            for row in csv.DictReader(content):
                add_row(curves.setdefault(int(row.pop("seed")), {}), row)
        about = yaml.safe_load(file.with_suffix(".yaml").read_text("utf-8"))
        return Recorded(curves, about["config"], about["runs"])
    except (OSError, ValueError, KeyError, TypeError, csv.Error, yaml.YAMLError) as error:
        raise UserError(
            f"{file} and its .yaml cannot be read ({error!r}): restore them, or record them again"
        ) from error


def write_recorded(recorded: Recorded, name: str, folder: Path) -> Path:
    """Write the curves of a run of the ladder and return the CSV file."""
    columns = list(dict.fromkeys(column for curve in recorded.curves.values() for column in curve))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", "step", *columns])
    for seed, curve in sorted(recorded.curves.items()):
        for step in sorted({step for values in curve.values() for step in values}):
            cells = (curve.get(column, {}).get(step) for column in columns)
            writer.writerow([seed, step, *("" if cell is None else stored_number(cell) for cell in cells)])
    file = folder / f"{name}.csv"
    with needed(file, refusal=UserError, advice="the folder must be that of a clone or an installation of yours"):
        folder.mkdir(parents=True, exist_ok=True)
        about = {"config": recorded.config, "runs": recorded.runs}
        write_text(file.with_suffix(".yaml"), yaml.safe_dump(about, sort_keys=False, width=120))
        write_text(file, text.getvalue())
    return file


def stored_number(value: float) -> str:
    """Return a value as the CSV file has it."""
    return f"{value:.6g}"


def read_columns(file: Path, figures: Sequence[str]) -> Columns:
    """Read the curves and the given figures from a run's `metrics.csv`."""
    columns: Columns = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as content:
            reader = csv.DictReader(content)
            if "step" not in (reader.fieldnames or ()):
                raise ValueError("it has no column step")
            for row in reader:
                add_row(columns, {name: cell for name, cell in row.items() if is_stored(name, figures)})
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}): give the folder of a run, runs/NAME") from error
    return columns


def is_stored(column: str | None, figures: Sequence[str]) -> bool:
    """Whether a column of `metrics.csv` is stored: the step, a curve of training, or a figure of the run."""
    if column is None or not column.startswith("train/"):
        return column == "step" or column in figures
    return column in LOGGED or column.endswith(LOSS_TERM)


def add_row(columns: Columns, row: Mapping[str, str | None]) -> None:
    """Add the numbers of one row of a CSV file."""
    with suppress(ValueError, TypeError):  # a row that a crash has truncated
        step = int(float(row["step"] or ""))
        for name, cell in row.items():
            if name != "step" and cell:
                columns.setdefault(name, {})[step] = float(cell)
