"""`metrics.csv`: one row per logged step, a column per metric, empty where a metric was not measured."""

import csv
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from openslip.durable import write_text
from openslip.errors import CheckpointError


class CsvLogger(Logger):
    """Always on; a new metric rewrites the file with its column, else a row is appended and flushed.

    Rows that the file already holds are kept; `cut_back` drops those of steps that will be repeated.
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
            with self.written(), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(self.rows[step])

    def read(self) -> None:
        """Read the rows of the run so far; a crash may have cut their end short, or filled it with zeros."""
        text = self.path.read_text(encoding="utf-8")
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        for row in reader:
            if not row["step"].isdecimal():
                break
            self.rows[int(row["step"])] = {key: value for key, value in row.items() if value}
        self.columns = list(reader.fieldnames or self.columns)

    @rank_zero_only
    def cut_back(self, step: int) -> None:
        """Drop the rows after a step, and columns that are then empty."""
        self.rows = {key: row for key, row in self.rows.items() if key <= step}
        self.columns = [
            name for name in self.columns if name == "step" or any(name in row for row in self.rows.values())
        ]
        if self.path.exists():
            self.rewrite()

    @rank_zero_only
    def sync(self) -> None:
        """Flush the file to the disk."""
        if self.path.exists():
            with self.written(), self.path.open("rb") as file:
                os.fsync(file.fileno())

    def rewrite(self) -> None:
        """Write the whole file."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows.values())
        with self.written():
            write_text(self.path, text.getvalue())

    @contextmanager
    def written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.path} could not be written ({error.strerror}): make room or mend the file system; the same "
                "command resumes the run from its last checkpoint"
            ) from error
