"""Read the files in a run's folder: metrics, config and arrays."""

import csv
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import yaml

from openslip import arrays
from openslip.errors import UserError
from openslip.regular_file import refuse_pipes

MAX_ARRAYS = 1 << 30  # bytes per file: an evaluation on ImageNet's validation set stores a hundredth of it


def refuse_other_folders(folder: Path) -> None:
    """Refuse a folder that is not a run's, or in which one of its files is a named pipe, socket or device."""
    refuse_pipes(folder)
    if not any((folder / name).is_file() for name in ("metrics.csv", "config.yaml")):
        raise UserError(f"{folder}: not a run's folder, it has neither metrics.csv nor config.yaml; try runs/<name>")


class AbsentError(Exception):
    """A section of the report is not available; the message says why in a few words."""


class NoPredictionsError(AbsentError):
    """An evaluation stored no labels and predictions, as many do; the report then shows its metrics alone."""


def check(condition: bool | np.bool_, reason: str) -> None:
    """Raise AbsentError with the reason unless the condition holds."""
    if not condition:
        raise AbsentError(reason)


class Series(NamedTuple):
    """One logged metric: its values `y` at the points `x` of the run."""

    x: np.ndarray
    y: np.ndarray

    @property
    def last(self) -> float:
        return float(self.y[-1])

    def nearest(self, x: float) -> tuple[float, float]:
        """Return the point that is nearest to `x`."""
        place = int(np.abs(self.x - x).argmin())
        return float(self.x[place]), float(self.y[place])

    def equals(self, other: "Series") -> bool:
        """Whether both have the same points, but for rounding."""
        return np.array_equal(self.x, other.x) and np.allclose(self.y, other.y, rtol=1e-6, atol=0)


class Metrics(NamedTuple):
    """All metrics by name, the meaning of their x-axis, and the last logged step with its x.

    `arrays` has the files of the evaluations whose newest arrays are not in `arrays/`.
    """

    columns: dict[str, Series]
    x_name: str
    step: int | None
    x: float
    arrays: Mapping[str, Path] = MappingProxyType({})

    def of_evaluation(self, group: str, name: str) -> list[str]:
        """List the metrics that an evaluation has logged.

        Args:
            group: `eval` for those of the trained weights, `eval_ema` for those of the EMA weights.
            name: name of the evaluation.
        """
        prefix = f"{group}/{name}/"
        return [column.removeprefix(prefix) for column in self.columns if column.startswith(prefix)]


def read_metrics(path: Path) -> Metrics:
    """Read metrics.csv, with samples seen as the x-axis.

    Evaluations only log the step, so the samples per step are taken from other rows.

    Raises:
        UserError: the file is not as the run wrote it, for example because another program has saved it.
    """
    rows: list[dict[str, float]] = []
    if path.is_file():
        try:
            with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames and "step" not in reader.fieldnames:
                    raise ValueError(f"its first line has no column step: {','.join(reader.fieldnames)[:60]!r}")
                rows = [_numbers(row) for row in reader]
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} is not as the run wrote it ({error}): restore it from a copy") from error
    rows = sorted((row for row in rows if "step" in row), key=lambda row: row["step"])
    per_step = [row["samples_seen"] / row["step"] for row in rows if row.get("samples_seen") and row["step"] > 0]
    factor, x_name = (per_step[-1], "samples seen") if per_step else (1, "step")
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row if name not in ("step", "samples_seen")):
        points = [(row["step"] * factor, row[name]) for row in rows if name in row]
        columns[name] = Series(*np.array(points).T)
    step = int(rows[-1]["step"]) if rows else None
    return Metrics(columns, x_name, step, factor * (step or 0))


def _numbers(row: dict[str | Any, str | Any]) -> dict[str, float]:
    numbers = {}
    for name, cell in row.items():
        with suppress(TypeError, ValueError):  # an empty cell, or a row that a crash has truncated
            numbers[name] = float(cell)
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def read_config(folder: Path) -> dict[str, Any]:
    """Read the resolved config of a run; empty if it cannot be read."""
    if not (folder / "config.yaml").is_file():
        return {}
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def at(config: Any, path: str) -> Any:
    """Return the config's value at a dotted path, or None if there is none."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def read_arrays(folder: Path, name: str, elsewhere: Mapping[str, Path] = MappingProxyType({})) -> dict[str, np.ndarray]:
    """Read the arrays of `arrays/NAME.npz`, or of the file that `elsewhere` has for this name."""
    path = elsewhere.get(name, folder / "arrays" / f"{name}.npz")
    shown = path.relative_to(folder).as_posix()
    if not path.is_file():
        raise NoPredictionsError(f"there is no {shown}")
    try:
        return arrays.read_arrays(path, max_bytes=MAX_ARRAYS)
    except Exception as error:  # for a damaged file, numpy passes on any exception of zipfile and zlib
        raise AbsentError(f"{shown} cannot be read ({error})") from error


def evaluation_names(folder: Path, metrics: Metrics) -> list[str]:
    """List the evaluations that have logged metrics or stored arrays."""
    logged = [name.split("/")[1] for name in metrics.columns if name.startswith("eval/") and name.count("/") == 2]
    stored = [path.stem for path in sorted((folder / "arrays").glob("*.npz"))]
    return [name for name in dict.fromkeys([*logged, *stored]) if name not in ("views", "similarity")]
