"""ImageNet zero-shot accuracy of the published SLIP files in a folder, beside the published accuracy."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openslip.commands.eval import all_records, as_user_error, can_write, feature_folder
from openslip.config.compose import compose_config
from openslip.errors import UserError
from openslip.evaluation import stored
from openslip.evaluation.feature_cache import FeatureCache
from openslip.evaluation.image_features import sharing
from openslip.evaluation.suite import Suite
from openslip.inference.load import load
from openslip.inference.published import TABLE, Published, published
from openslip.progress import progress
from openslip.terminal import say

SOURCE = "facebookresearch/SLIP"
EVALUATION = "imagenet"  # with the 7 templates of the published figures
NUM_IMAGES = 50_000  # of ImageNet's validation set
WIDTH = 80
TOLERANCE = 0.1  # points; published figures have one decimal


class Outcome(NamedTuple):
    """The result for one file.

    Attributes:
        file: what was published.
        value: accuracy here, in per cent; None without one.
        problem: why there is no accuracy, or why it cannot be compared; empty if it can be.
    """

    file: Published
    value: float | None = None
    problem: str = ""

    @property
    def difference(self) -> float | None:
        """Difference to the published accuracy, in points; None if one of the two does not exist."""
        published = self.file.zero_shot
        return None if self.value is None or published is None else self.value - published

    @property
    def is_confirmed(self) -> bool:
        """Whether the accuracy is the published one, up to the rounding of floats: 42.9 - 42.8 is more than 0.1."""
        return not self.problem and self.difference is not None and round(abs(self.difference), 6) <= TOLERANCE

    @property
    def has_failed(self) -> bool:
        """Whether the published accuracy is not confirmed; a model without text has none, and must only load."""
        return bool(self.problem) or (not self.is_confirmed and self.file.zero_shot is not None)

    def lines(self) -> Iterator[str]:
        """Yield the row of the table, and what is wrong with it."""
        here, there = (f"{'-' if x is None else f'{x:.2f}'}" for x in (self.value, self.file.zero_shot))
        difference = "" if self.difference is None else f"{self.difference:+.2f}"
        verdict = "ok" if self.is_confirmed else "NOT CONFIRMED" if self.has_failed else "no text tower"
        yield f"  {self.file.name:22} {here:>8} {there:>9} {difference:>10}  {verdict}"
        yield from textwrap.wrap(self.problem, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4)


def evaluate_published(weights: Path, imagenet: Path) -> int:
    """Evaluate all published SLIP files in a folder and print the table; return 1 if a row is not confirmed.

    A result is stored beside its file, so that a repeated command computes only what is missing.

    Args:
        weights: folder of the files, by their published names.
        imagenet: folder of ImageNet with `val/`, or the validation folder itself.

    Raises:
        UserError: a folder does not exist, or there is no published file.
    """
    known = {file.file_name: file for file in published(TABLE).values() if file.source == SOURCE}
    if not weights.is_dir():
        raise UserError(
            f"--weights {weights}: no such folder; expected one that holds files such as {next(iter(known))}"
        )
    files = [file for name, file in known.items() if (weights / name).is_file()]
    if not files:
        raise UserError(f"--weights {weights}: has no published file, such as {', '.join([*known][:3])}")
    config = evaluation_config(imagenet)
    outcomes = []
    for number, file in enumerate(files, 1):
        say(f"{file.name}: {number} of {len(files)}")
        outcomes.append(outcome_of(file, weights / file.file_name, config))
    show(outcomes, num_published=len(known))
    return int(any(outcome.has_failed for outcome in outcomes))


def evaluation_config(imagenet: Path) -> dict[str, Any]:
    """Return the config of the evaluation, on the images of one folder."""
    root = imagenet / "val" if (imagenet / "val").is_dir() else imagenet
    if not root.is_dir():
        raise UserError(f"--imagenet {imagenet}: no such folder; expected ImageNet's folder, which holds val/")
    config, _ = compose_config("eval", [f"evaluation={EVALUATION}"], {"checkpoint": "published"})
    options = config["evaluation"][EVALUATION]
    options["source"] = {"_target_": options["source"]["places"]["folders"]["_target_"], "root": str(root)}
    options["expected_samples"] = NUM_IMAGES
    options["num_workers"] = min(options["num_workers"], os.cpu_count() or 1)
    return config


def outcome_of(file: Published, path: Path, config: dict[str, Any]) -> Outcome:
    """Load and evaluate one file; an error of any kind becomes its row, and the next file is still evaluated."""
    try:
        with progress(f"loading {path.name}"):
            bundle = load(path, device=config["device"])
        if bundle.tokenizer is None:
            return Outcome(file, problem="" if file.zero_shot is None else "the file has no text tower")
        features = FeatureCache(feature_folder(config["feature_cache"]))
        folder = stored.folder_of(str(path), path)
        with sharing(features):
            suite = Suite(bundle, str(path), features)
            records, errors = all_records(config, suite, folder, is_written=can_write(folder))
        for error in errors.values():
            raise error
    except Exception as error:  # such as missing memory
        return Outcome(file, problem=str(as_user_error(error)))
    return outcome_from(file, records[EVALUATION])


def outcome_from(file: Published, record: dict[str, Any]) -> Outcome:
    """Return the outcome of a stored result, which cannot be compared if it is of a part of ImageNet."""
    parts = [f"{record['notes'][key]} {key}" for key in ("classes", "samples") if key in record["notes"]]
    problem = f"not comparable: {', '.join([*parts, *record['problems']])}" if parts or record["problems"] else ""
    return Outcome(file, record["metrics"]["top1"], problem)


def show(outcomes: Sequence[Outcome], *, num_published: int) -> None:
    """Print the table, and how many rows are confirmed."""
    say("", "ImageNet zero-shot top-1 in per cent, 7 templates")
    say(f"  {'':22} {'here':>8} {'published':>9} {'difference':>10}")
    say(*(line for outcome in outcomes for line in outcome.lines()))
    num_compared = sum(outcome.file.zero_shot is not None for outcome in outcomes)
    num_confirmed = sum(outcome.is_confirmed for outcome in outcomes)
    say(f"{num_confirmed} of {num_compared} within {TOLERANCE} points of the published accuracy")
    say(f"{len(outcomes)} of the {num_published} published files are in the folder")
