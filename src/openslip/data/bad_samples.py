"""Samples that could not be used in training: replaced, written down, and counted against a budget."""

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from openslip.durable import needed, write_text
from openslip.errors import DataError


class BadSample(NamedTuple):
    """A planned sample, why it could not be used, and what replaced it."""

    sample: int
    key: str
    reason: str
    substitute: str


class BadSamples:
    """One rank's record; ranks write files of their own, because appending to one from several nodes loses lines.

    Args:
        file: of the first rank, gets a line of JSON per bad sample; None writes none.
        budget: share of an epoch's samples that may be bad.
        samples_per_epoch: of all ranks.
    """

    def __init__(self, file: Path | None, *, rank: int, budget: float, samples_per_epoch: int) -> None:
        self.first_file = file
        self.file = file if file is None or rank == 0 else file.with_stem(f"{file.stem}-rank{rank}")
        self.rank = rank
        self.budget = budget
        self.samples_per_epoch = samples_per_epoch
        self.in_epoch = 0
        self._epoch = -1
        self._last = ""

    def record(self, epoch: int, step: int, bad: list[BadSample]) -> None:
        """Write down the bad samples of a step."""
        if epoch != self._epoch:
            self._epoch, self.in_epoch = epoch, 0
        if not bad:
            return
        self.in_epoch += len(bad)
        self._last = f"; the last: {bad[-1].reason}"
        if self.file is not None:
            with needed(self.file), self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({"epoch": epoch, "step": step, **sample._asdict()}) + "\n" for sample in bad)

    def check(self, in_epoch: int) -> None:
        """End the run, on every rank, where the epoch's bad samples, added up over the ranks, exceed the budget."""
        allowed = int(self.budget * self.samples_per_epoch)
        if in_epoch > allowed:
            raise DataError(
                f"{in_epoch} bad samples in epoch {self._epoch}, {allowed} allowed "
                f"(data.bad_sample_budget={self.budget}), listed in {self.first_file}{self._last}. "
                "Allow more and the same command resumes, or repair the dataset and start again with another name="
            )

    def cut_back(self, epoch: int, step: int) -> None:
        """Discard all ranks' lines of steps that will be repeated, from this one on; the first rank does it."""
        if self.rank:
            return
        self._epoch, self.in_epoch = epoch, 0
        for file in self.files():
            kept = []
            for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
                with suppress(ValueError):  # cut short by a crash
                    entry = json.loads(line)
                    if (entry["epoch"], entry["step"]) < (epoch, step):
                        kept.append(line)
                        self.in_epoch += entry["epoch"] == epoch
            with needed(file):
                write_text(file, "".join(kept))

    def total(self) -> int:
        """Bad samples of all ranks in the whole run."""
        return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in self.files())

    def files(self) -> list[Path]:
        """Files of all ranks that have met bad samples."""
        if self.first_file is None:
            return []
        return sorted(self.first_file.parent.glob(f"{self.first_file.stem}*{self.first_file.suffix}"))
