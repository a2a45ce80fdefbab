"""Table of the results that `openslip eval` has stored: evaluations x checkpoints, beside published metrics."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from openslip.errors import UserError
from openslip.evaluation import stored
from openslip.inference.published import TABLE, published
from openslip.run.checkpoints import step_of

METRICS = Path(__file__).with_name("published_metrics.yaml")


class Checkpoint(NamedTuple):
    """An evaluated checkpoint: its label in the table and its results, by the evaluation's name."""

    label: str
    step: int | None
    results: dict[str, dict[str, Any]]


class Cell(NamedTuple):
    """The headline metric of a checkpoint, and its difference to the published one, None where there is none."""

    value: float
    published: float | None

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.value - self.published


class Line(NamedTuple):
    """One evaluation's cells, by the place of the checkpoint; None where it was not evaluated."""

    evaluation: str
    metric: str
    cells: list[Cell | None]
    published: list[float | None]  # by the place of the name in `Results.published`


class Results(NamedTuple):
    """The table: its columns are the checkpoints and then the published ones."""

    checkpoints: list[Checkpoint]
    published: list[str]
    lines: list[Line]


class PublishedMetric(NamedTuple):
    """A published metric in per cent, and the headline metric and config values for which it holds."""

    value: float
    metric: str
    config: dict[str, Any]

    def holds_for(self, result: Mapping[str, Any], metric: str) -> bool:
        """Whether a result was computed as the published one, on the whole dataset."""
        is_whole = not result.get("problems") and not {"classes", "samples"} & result["notes"].keys()
        is_same = all(result["config"].get(key) == value for key, value in self.config.items())
        return metric == self.metric and is_whole and is_same


def read_results(places: Sequence[Path], compared_with: str | None = None) -> Results:
    """Read the results of runs and checkpoints.

    Args:
        places: folders of runs, folders of results, and checkpoint files, addresses or names that were evaluated.
        compared_with: name of the published checkpoint that all are compared with; None compares each with the one of
            its own name, if there is one.

    Raises:
        UserError: no place has results, a place does not exist, or no published checkpoint has that name.
    """
    known = published_metrics()
    if compared_with is not None and compared_with not in known:
        raise UserError(f"--published {compared_with}: expected one of {', '.join(known)}")
    checkpoints = [checkpoint for place in places for checkpoint in read_place(place)]
    if not any(checkpoint.results for checkpoint in checkpoints):
        raise UserError(without_results(places[0]))
    names = [name_of(checkpoint, compared_with) for checkpoint in checkpoints]
    columns = [name for name in dict.fromkeys(names) if name in known]
    lines = []
    for evaluation, metric in keys_of(checkpoints):
        cells: list[Cell | None] = []
        figures: list[float | None] = [None] * len(columns)
        for checkpoint, name in zip(checkpoints, names, strict=True):
            result = checkpoint.results.get(evaluation)
            found = stored.headline(result) if result else None
            if result is None or found is None or found[0] != metric:
                cells.append(None)
                continue
            figure = known.get(name, {}).get(evaluation)
            value = figure.value if figure is not None and figure.holds_for(result, metric) else None
            if value is not None:
                figures[columns.index(name)] = value
            cells.append(Cell(found[1], value))
        lines.append(Line(evaluation, metric, cells, figures))
    return Results(checkpoints, columns, lines)


def read_place(place: Path) -> list[Checkpoint]:
    """Read the evaluated checkpoints of one place, those of a run in the order of their steps.

    A run or file without results is one checkpoint without results.

    Raises:
        UserError: there is neither a result nor such a file or folder.
    """
    run = place.resolve().name
    if place.is_dir():
        folders = [(f"{run}/{folder.name}", folder) for folder in sorted(place.glob(f"{stored.FOLDER}/*/"))]
        folders += [(run, place / stored.FOLDER), (run.removesuffix(stored.SUFFIX), place)]
    else:
        folder = stored.folder_of(str(place), place if place.is_file() else None)
        of_run = f"{folder.parent.parent.resolve().name}/" if folder.parent.name == stored.FOLDER else ""
        of_file = of_run + place.stem if of_run else place.name  # model.pt and model.safetensors are two models
        folders = [(of_file if place.is_file() else str(place), folder)]
    found = []
    for label, folder in folders:
        if results := {result["evaluation"]: result for result in stored.read_all(folder)}:
            found.append(Checkpoint(label, step_of(folder), results))
    if not found and not place.exists():
        raise UserError(without_results(place))
    if not found:
        return [Checkpoint(run if place.is_dir() else place.name, None, {})]
    return sorted(found, key=lambda checkpoint: -1 if checkpoint.step is None else checkpoint.step)


def without_results(place: Path) -> str:
    """Return the error message for a place without results."""
    return f"{place} has no results: openslip eval checkpoint={place} evaluation=NAME computes them"


def name_of(checkpoint: Checkpoint, compared_with: str | None) -> str:
    """Return the name of the published checkpoint that a checkpoint is compared with."""
    return compared_with or next((result["checkpoint"] for result in checkpoint.results.values()), "")


def keys_of(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, str]]:
    """Yield each evaluation with its headline metric, in the order of names; two metrics make two lines."""
    keys = {
        (evaluation, found[0])
        for checkpoint in checkpoints
        for evaluation, result in checkpoint.results.items()
        if (found := stored.headline(result)) is not None and math.isfinite(found[1])
    }
    yield from sorted(keys)


@cache
def published_metrics() -> dict[str, dict[str, PublishedMetric]]:
    """Read the published metrics, by checkpoint and evaluation."""
    metrics: dict[str, dict[str, PublishedMetric]] = {}
    for group in yaml.safe_load(METRICS.read_text(encoding="utf-8")):
        figures = group.get("metrics", {})
        for field, evaluation in group.get("field", {}).items():
            columns = ((name, checkpoint._asdict()[field]) for name, checkpoint in published(TABLE).items())
            figures |= {name: {evaluation: value} for name, value in columns if value is not None}
        for name, values in figures.items():
            for evaluation, value in values.items():
                metric, config = group["expected"][evaluation]["metric"], dict(group["expected"][evaluation])
                del config["metric"]
                metrics.setdefault(name, {})[evaluation] = PublishedMetric(value, metric, config)
    return metrics
