"""Bad samples: those that could not be used in training and were replaced, logged, and counted against a budget."""

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from openslip.durable import needed, write_text
from openslip.errors import DataError


class BadSample(NamedTuple):
    """A planned sample, the reason why it could not be used, and the key of its substitute."""

    sample: int
    key: str
    reason: str
    substitute: str


class BadSamples:
    """Record of one rank's bad samples.

    Every rank writes its own file, because lines are lost when several nodes append to the same one.

    Args:
        file: file of rank 0, with a line of JSON per bad sample; rank N adds `-rankN` to its name. None writes no file.
        rank: rank of this process.
        budget: share of an epoch's samples that may be bad, 0 to 1.
        samples_per_epoch: samples per epoch over all ranks.
    """

    def __init__(self, file: Path | None, *, rank: int, budget: float, samples_per_epoch: int) -> None:
        self.first_file = file
        self.file = file if file is None or rank == 0 else file.with_stem(f"{file.stem}-rank{rank}")
        self.rank = rank
        self.budget = budget
        self.samples_per_epoch = samples_per_epoch
        self.in_epoch = 0
        self._epoch = -1
        self._recorded = (-1, -1)  # epoch and step of the last batch
        self._last = ""

    def record(self, epoch: int, step: int, bad: list[BadSample]) -> None:
        """Count the bad samples of a step and append them to the file, unless the step only repeats an earlier one."""
        if (epoch, step) <= self._recorded:  # with data.overfit_batches
            return
        self._recorded = epoch, step
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
        """Raise DataError if the epoch's bad samples exceed the budget.

        Args:
            in_epoch: bad samples of the epoch, summed over all ranks, so that every rank decides alike.
        """
        allowed = int(self.budget * self.samples_per_epoch)
        if in_epoch > allowed:
            raise DataError(
                f"{in_epoch} bad samples in epoch {self._epoch}, {allowed} allowed "
                f"(data.bad_sample_budget={self.budget}), listed in {self.first_file}{self._last}. "
                "Allow more and the same command resumes, or repair the dataset and start again with another name="
            )

    def cut_back(self, epoch: int, step: int) -> None:
        """Discard the lines of all ranks from this step on, because these steps are repeated; only rank 0 does it."""
        self._recorded = epoch, step - 1
        if self.rank:
            return
        self._epoch, self.in_epoch = epoch, 0
        for file in self.files():
            kept = []
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                with suppress(ValueError, TypeError, KeyError):  # a line that a crash cut short, or that is not ours
                    entry = json.loads(line)
                    if (entry["epoch"], entry["step"]) < (epoch, step):
                        kept.append(line)
                        self.in_epoch += entry["epoch"] == epoch
            with needed(file):
                write_text(file, "".join(kept))

    def total(self) -> int:
        """Number of bad samples of all ranks in the whole run."""
        return sum(len(file.read_bytes().splitlines()) for file in self.files())

    def files(self) -> list[Path]:
        """Files of all ranks that have had bad samples."""
        if self.first_file is None:
            return []
        return sorted(self.first_file.parent.glob(f"{self.first_file.stem}*{self.first_file.suffix}"))
