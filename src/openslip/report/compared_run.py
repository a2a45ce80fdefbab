"""A run among those that a page compares."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openslip.errors import UserError
from openslip.report.later_evaluations import with_later_evaluations
from openslip.report.run_files import Metrics, read_config, read_metrics, refuse_other_folders

NO_RESULT = ("chance", "num_")  # begin the names of metrics that say nothing about the model
SPEED = "speed/samples_per_second"


class ComparedRun(NamedTuple):
    """What the page shows of a run; `name` is unique among the runs."""

    name: str
    folder: Path
    config: dict[str, Any]
    metrics: Metrics


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs in folders.

    Raises:
        UserError: a folder is not a run's, or occurs twice.
    """
    for folder in folders:
        refuse_other_folders(folder)
    for folder, count in Counter(map(Path.resolve, folders)).items():
        if count > 1:
            raise UserError(f"{folder} is given {count} times: give each run once")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    return [
        ComparedRun(
            name, folder, read_config(folder), with_later_evaluations(read_metrics(folder / "metrics.csv"), folder)
        )
        for name, folder in zip(names, folders, strict=True)
    ]


def columns_of(runs: Sequence[ComparedRun]) -> list[str]:
    """List the metrics that any of the runs has logged."""
    return list(dict.fromkeys(column for run in runs for column in run.metrics.columns))


def evaluation_of(column: str) -> tuple[str, str] | None:
    """Return the evaluation and the metric of a column, or None if it is no result of an evaluation."""
    group, _, metric = column.rpartition("/")
    kind, _, name = group.partition("/")
    if kind not in ("eval", "eval_ema") or not name or metric.startswith(NO_RESULT):
        return None
    return f"{name} (EMA)" if kind == "eval_ema" else name, metric
