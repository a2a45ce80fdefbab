"""Results that `openslip eval` has stored in a run's folder, as further points of the metrics that training logged."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from openslip.evaluation import stored
from openslip.report.run_files import Metrics, Series, read_config


def with_later_evaluations(metrics: Metrics, folder: Path) -> Metrics:
    """Return a run's metrics together with those that were evaluated from its checkpoints.

    A result that was computed from a checkpoint replaces the one that training logged at the same step. Of a run with
    EMA weights it is the result of these, because `openslip.load` loads them. A result of other settings than those of
    the run's evaluation, such as other templates, is another curve: its name gets four digits of their hash.

    Args:
        metrics: metrics of training.
        folder: the run's folder.
    """
    per_step = metrics.x / metrics.step if metrics.step else 1.0
    columns, arrays = dict(metrics.columns), dict[str, Path]()
    group = "eval_ema" if any(column.startswith("eval_ema/") for column in columns) else "eval"
    trained = settings_in_training(folder)
    results = sorted(results_of(folder), key=lambda result: result[1]["step"])
    for path, record in results:
        x = record["step"] * per_step
        name = name_of(record, trained)
        former = [columns[column].x[-1] for column in columns if column.startswith(f"{group}/{name}/")]
        if all(x >= last for last in former) and path.with_suffix(".npz").exists():
            arrays[name] = path.with_suffix(".npz")
        for metric, value in record["metrics"].items():
            if math.isfinite(value):
                column = f"{group}/{name}/{metric}"
                columns[column] = with_point(columns.get(column), x, float(value))
    return metrics._replace(columns=columns, arrays=arrays)


def settings_in_training(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of a run's evaluations that change metrics; none if the run used parts of the datasets."""
    config = read_config(folder)
    evaluations = config["evaluation"] if isinstance(config.get("evaluation"), dict) else {}
    subset = {} if config.get("evaluation_samples") is None else {"evaluation_samples": config["evaluation_samples"]}
    return {name: settled(options) | subset for name, options in evaluations.items() if isinstance(options, dict)}


def settled(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in stored.NO_RESULT}


def name_of(record: dict[str, Any], trained: dict[str, dict[str, Any]]) -> str:
    """Return the name of a result's curve: that of the evaluation, unless training has evaluated with other settings.

    Args:
        record: the result.
        trained: settings of the run's evaluations, by name.
    """
    name, settings = record["evaluation"], settled(record["config"])
    if trained.get(name, settings) == settings:
        return name
    return f"{name}-{hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:4]}"


def results_of(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """List the results of a run's checkpoints whose step is known, with their files."""
    found = [(path, stored.read(path)) for path in sorted(folder.glob(f"{stored.FOLDER}/*/*.json"))]
    return [(path, record) for path, record in found if record is not None and isinstance(record.get("step"), int)]


def with_point(series: Series | None, x: float, y: float) -> Series:
    """Return a metric with one more point, in place of one at the same x."""
    points = {} if series is None else dict(zip(series.x.tolist(), series.y.tolist(), strict=True))
    points[x] = y
    return Series(*np.array(sorted(points.items()), dtype=float).T)
