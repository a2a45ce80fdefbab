"""`metrics.csv`: one row per logged step and one column per metric, empty where a metric was not measured."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from openslip.durable import needed, write_text
from openslip.errors import CheckpointError


class CsvLogger(Logger):
    """Logs to `metrics.csv` in every run.

    A new step is appended as a row. The file is rewritten if there is a new column, or if a step that has a row gets
    further metrics. Rows that the file already holds are kept. `cut_back` drops the rows of steps that will be
    repeated.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns = ["step"]
        self.rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            self.read()

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, because the run's config.yaml holds the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        known_step, new = step in self.rows, [key for key in metrics if key not in self.columns]
        self.columns += new
        self.rows.setdefault(step, {"step": step}).update(metrics)
        if known_step or new:
            self.rewrite()
        else:
            with needed(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(self.rows[step])

    def read(self) -> None:
        """Read the rows of the file; after a crash, the last row may be incomplete or filled with zero bytes.

        Raises:
            CheckpointError: another program has changed the file, and rewriting it would lose rows.
        """
        try:
            text = self.path.read_text(encoding="utf-8-sig")
            reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
            self.columns = list(reader.fieldnames or self.columns)
            if "step" not in self.columns:
                raise ValueError(f"its first line has no column step: {text.splitlines()[0][:60]!r}")
            for row in reader:
                step = (row["step"] or "").strip("\0 ")
                if not step or None in row:  # left by a crash
                    break
                if not step.isdecimal():
                    raise ValueError(f"line {reader.line_num} has step {step[:20]!r}")
                self.rows[int(step)] = {**{key: value for key, value in row.items() if value}, "step": step}
        except (ValueError, csv.Error) as error:
            raise CheckpointError(
                f"{self.path} is not as the run wrote it ({error}): restore it from a copy, or move it away to resume "
                "without the earlier rows"
            ) from error

    @rank_zero_only
    def cut_back(self, step: int) -> None:
        """Drop the rows of all steps after `step`, and the columns that become empty."""
        self.rows = {key: row for key, row in self.rows.items() if key <= step}
        self.columns = [
            name for name in self.columns if name == "step" or any(name in row for row in self.rows.values())
        ]
        if self.path.exists():
            self.rewrite()

    @rank_zero_only
    def sync(self) -> None:
        """Synchronise the file with the disk."""
        if self.path.exists():
            with needed(self.path), self.path.open("rb") as file:
                os.fsync(file.fileno())

    def rewrite(self) -> None:
        """Rewrite the whole file, durably."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows.values())
        with needed(self.path):
            write_text(self.path, text.getvalue())
