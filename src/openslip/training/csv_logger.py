"""`metrics.csv`: one row per logged step, a column per metric, empty where a metric was not measured."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only


class CsvLogger(Logger):
    """Always on; a new metric rewrites the file with its column, else a row is appended and flushed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns = ["step"]
        self.rows: dict[int, dict[str, Any]] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        known_step, new = step in self.rows, [key for key in metrics if key not in self.columns]
        self.columns += new
        self.rows.setdefault(step, {"step": step}).update(metrics)
        if known_step or new:
            self.rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(self.rows[step])

    def rewrite(self) -> None:
        """The whole file, through a temporary one."""
        temporary = self.path.with_suffix(".csv.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows.values())
        temporary.replace(self.path)
