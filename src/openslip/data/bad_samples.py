"""Samples that could not be used in training: replaced, written down, and counted against a budget."""

import json
from pathlib import Path
from typing import NamedTuple

from openslip.errors import DataError


class BadSample(NamedTuple):
    """A planned sample, why it could not be used, and what stood in for it."""

    sample: int
    key: str
    reason: str
    substitute: str


class BadSamples:
    """One rank's record.

    Args:
        file: gets a line of JSON per bad sample; None writes none.
        budget: share of an epoch's samples that may be bad.
        samples_per_epoch: of this rank.
    """

    def __init__(self, file: Path | None, *, budget: float, samples_per_epoch: int) -> None:
        self.file = file
        self.budget = budget
        self.samples_per_epoch = samples_per_epoch
        self.total = 0
        self._epoch = -1
        self._in_epoch = 0

    def record(self, epoch: int, step: int, bad: list[BadSample]) -> None:
        """Writes down the bad samples of a step.

        Raises:
            DataError: this epoch has had more of them than the budget allows.
        """
        if epoch != self._epoch:
            self._epoch, self._in_epoch = epoch, 0
        if not bad:
            return
        self.total += len(bad)
        self._in_epoch += len(bad)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"epoch": epoch, "step": step, **each._asdict()}) + "\n" for each in bad)
        allowed = int(self.budget * self.samples_per_epoch)
        if self._in_epoch > allowed:
            where = f"listed in {self.file}" if self.file is not None else "listed nowhere"
            raise DataError(
                f"{self._in_epoch} bad samples in epoch {epoch}, {allowed} allowed "
                f"(data.bad_sample_budget={self.budget}), {where}; "
                f"the last: {bad[-1].reason}. Mend the collection, or allow more"
            )

    def cut_back(self, epoch: int, step: int) -> None:
        """Drops the lines of steps that will be made again, from this one on."""
        if self.file is None or not self.file.exists():
            return
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _before(line, epoch, step)]
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.file)
        self.total = len(kept)
        self._epoch = epoch
        self._in_epoch = sum(json.loads(line)["epoch"] == epoch for line in kept)


def _before(line: str, epoch: int, step: int) -> bool:
    try:
        entry = json.loads(line)
        return (entry["epoch"], entry["step"]) < (epoch, step)
    except (ValueError, KeyError, TypeError):  # cut short by a crash
        return False
