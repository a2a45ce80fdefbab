"""ImageNet zero-shot accuracy of the published SLIP files in a folder, beside the published accuracy."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openslip.commands._published_sizes import other_sizes
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
from openslip.terminal import say, width, wrapped

SOURCE = "facebookresearch/SLIP"
EVALUATION = "imagenet"  # with the 7 templates of the published figures
NUM_IMAGES = 50_000  # of ImageNet's validation set
WNID = re.compile(r"n\d{8}")  # WordNet's id of a class
TOLERANCE = 0.1  # points; published figures have one decimal


class Outcome(NamedTuple):
    """The result for one file.

    Attributes:
        file: what was published.
        value: accuracy here, in per cent; None without one.
        problem: why there is no accuracy, or why it cannot be compared; empty if it can be.
        failure: what the row of a failure is called.
    """

    file: Published
    value: float | None = None
    problem: str = ""
    failure: str = "NOT CONFIRMED"

    @property
    def difference(self) -> float | None:
        """Difference to the published accuracy, in points; None if there are no two comparable accuracies."""
        published = self.file.zero_shot
        return None if self.problem or self.value is None or published is None else self.value - published

    @property
    def is_confirmed(self) -> bool:
        """Whether the accuracy is the published one, up to the rounding of floats: 42.9 - 42.8 is more than 0.1."""
        return self.difference is not None and round(abs(self.difference), 6) <= TOLERANCE

    @property
    def has_failed(self) -> bool:
        """Whether the published accuracy is not confirmed; a model without text has none, and must only load."""
        return bool(self.problem) or (not self.is_confirmed and self.file.zero_shot is not None)

    def lines(self) -> Iterator[str]:
        """Yield the row of the table, and what is wrong with it."""
        here, there = (f"{'-' if x is None else f'{x:.2f}'}" for x in (self.value, self.file.zero_shot))
        difference = "" if self.difference is None else f"{self.difference:+.2f}"
        verdict = "ok" if self.is_confirmed else self.failure if self.has_failed else "no text tower"
        yield f"  {self.file.name:22} {here:>8} {there:>9} {difference:>10}  {verdict}"
        yield from wrapped(f"    {self.problem}", width(), indent=4) if self.problem else ()


def evaluate_published(weights: Path, imagenet: Path, *, again: bool) -> int:
    """Evaluate all published SLIP files in a folder and print the table; return 1 if a row is not confirmed.

    A result is stored beside its file, so that a repeated command computes only what is missing.

    Args:
        weights: folder of the files, by their published names.
        imagenet: folder of ImageNet with `val/`, or the validation folder itself.
        again: whether stored results are computed again.

    Raises:
        UserError: a folder does not exist, there is no published file, or ImageNet has no images.
    """
    known = {file.file_name: file for file in published(TABLE).values() if file.source == SOURCE}
    if not weights.is_dir():
        problem = f"is a file; give its folder, {weights.parent}" if weights.exists() else "no such folder"
        raise UserError(f"--weights {weights}: {problem}; expected one that holds files such as {next(iter(known))}")
    files = [file for name, file in known.items() if (weights / name).is_file()]
    if not files:
        raise UserError(f"--weights {weights}: has no published file, such as {', '.join([*known][:3])}")
    config = evaluation_config(imagenet, again=again)
    outcomes = []
    for number, file in enumerate(files, 1):
        say(f"{file.name}: {number} of {len(files)}")
        outcomes.append(outcome_of(file, weights / file.file_name, config))
    show(outcomes, num_published=len(known))
    return int(any(outcome.has_failed for outcome in outcomes))


def evaluation_config(imagenet: Path, *, again: bool) -> dict[str, Any]:
    """Return the config of the evaluation, on the images of one folder.

    Raises:
        UserError: there is no such folder, it has no folders of classes, or a class has no image.
    """
    root = imagenet / "val" if (imagenet / "val").is_dir() else imagenet
    layout = "val/ with one folder of images per class, such as val/n01440764"
    if not imagenet.is_dir():
        problem = "is a file" if imagenet.exists() else "no such folder"
        raise UserError(f"--imagenet {imagenet}: {problem}; expected ImageNet's folder, which holds {layout}")
    classes = [place for place in sorted(root.iterdir()) if WNID.fullmatch(place.name)]
    if not classes:
        raise UserError(f"--imagenet {imagenet}: {root} has no folders of classes; expected {layout}")
    if empty := [place for place in classes if not (place.is_dir() and any(place.iterdir()))]:
        raise UserError(f"--imagenet {imagenet}: {empty[0]} is empty, and each class has 50 images: unpack them again")
    config, _ = compose_config("eval", [f"evaluation={EVALUATION}", f"again={again}"], {"checkpoint": "published"})
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
        if different := other_sizes(bundle.model, file):
            problem = f"{path.name} holds another model than {file.name}: {different}"
            return Outcome(file, problem=problem, failure="ANOTHER MODEL")
        if bundle.tokenizer is None:
            return Outcome(file)
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
    parts += [f"{record['metrics']['num_samples']:g} of {NUM_IMAGES} images"] if "classes" in record["notes"] else []
    problem = f"not comparable: {', '.join([*parts, *record['problems']])}" if parts or record["problems"] else ""
    return Outcome(file, record["metrics"]["top1"], problem)


def show(outcomes: Sequence[Outcome], *, num_published: int) -> None:
    """Print the table, and how many rows are confirmed."""
    say("", "ImageNet zero-shot top-1 in per cent, 7 templates")
    say(f"  {'':22} {'here':>8} {'published':>9} {'difference':>10}")
    say(*(line for outcome in outcomes for line in outcome.lines()))
    num_comparable = sum(outcome.file.zero_shot is not None for outcome in outcomes)
    num_confirmed = sum(outcome.is_confirmed for outcome in outcomes)
    num_failed = sum(outcome.has_failed for outcome in outcomes)
    say(f"{num_confirmed} of {num_comparable} files with text are within {TOLERANCE} points of the published accuracy")
    say(f"{num_failed} of {len(outcomes)} files failed; {num_published} are published")
