"""Comparison of a run with the stored curves of the same recipe, in spreads.

A spread is the standard deviation of the stored seeds. A difference of more than `LIMIT` spreads counts as a deviation:
with three seeds, 95 % of the runs of another seed lie within that (Student's t with two degrees of freedom).

Each curve is averaged over ten equal windows of the run, because single batches are noisy. Three seeds often agree by
chance in one window, so the spread of a window is at least the root mean square of the relative spreads of all windows.
A small difference that lasts shows in the geometric mean over the windows, which weights them equally; its spread is at
least that of a mean of independent windows. A spread is also never below a floor, so that seeds that agree exactly do
not turn rounding into a deviation.
"""

import math
import statistics
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from openslip.reproduce.curves import LOSS, Columns, Recorded, final, stored_number
from openslip.reproduce.finished import Finished, circumstances, config_differences, described
from openslip.reproduce.rungs import Entry, Figure

LIMIT = 5.0  # 4.97 = 4.303 (97.5 % of Student's t with 2 degrees of freedom) * sqrt(1 + 1/3)
NUM_WINDOWS = 10
LEAST_SPREAD = 0.005  # floor of a curve's spread, relative to its value
SMALLEST = 1e-9  # stands for 0, such as the loss of a term that is switched off
ASSUMED_SPREAD = 0.2  # points; for published figures, of which one run is known
SHORT = 12  # digits of a fingerprint that are shown


class Row(NamedTuple):
    """A compared quantity.

    Attributes:
        name: its column.
        value: value of the run.
        expected: mean of the stored seeds, or the published value.
        spread: their standard deviation, floor included.
        where: part of the run where the difference is largest; empty for a figure.
    """

    name: str
    value: float
    expected: float
    spread: float
    where: str = ""

    @property
    def difference(self) -> float:
        """Difference to the expected value, in spreads."""
        return (self.value - self.expected) / self.spread

    @property
    def deviates(self) -> bool:
        """Whether the difference is larger than another seed explains; a value that is not finite always deviates."""
        return not abs(self.difference) <= LIMIT


class Comparison(NamedTuple):
    """The result of a comparison.

    Attributes:
        rows: curves, and the figures that the run has.
        settings: settings in which the run differs from the recipe.
        missing: curves that the run does not have, and figures if it is finished.
        notes: lines about what was compared.
    """

    rows: list[Row]
    settings: list[str]
    missing: list[str]
    notes: list[str]

    @property
    def deviates(self) -> bool:
        """Whether the run is not a repetition of the recipe, or its result differs."""
        return bool(self.settings or self.missing) or any(row.deviates for row in self.rows)


def compare(run: Finished, entry: Entry, given: Mapping[str, object], recorded: Recorded | None) -> Comparison:
    """Compare a run with the known results of the run that it repeats.

    Args:
        run: the run; of an unfinished one, the curves so far are compared, and no figure.
        entry: the run that it repeats.
        given: config or identity of that run.
        recorded: its stored curves; None if only a published figure is known.
    """
    rows = [] if recorded is None else [*curve_rows(run.columns, recorded.curves)]
    notes = [] if recorded is None else [*other_circumstances(run, recorded), *curve_notes(run, rows, recorded)]
    figures = {column: final(run.columns, column, best=entry.best) for column in entry.figures}
    for column, figure in entry.figures.items():
        value, known = figures[column], expected_values(entry, column, recorded)
        if value is not None and known and run.is_finished:
            rows.append(figure_row(column, value, known, figure))
    missing = [] if recorded is None else [name for name in curve_names(recorded.curves) if name not in run.columns]
    missing += [column for column, value in figures.items() if value is None and run.is_finished]
    return Comparison(rows, described(config_differences(run.config, given)), missing, notes)


def other_circumstances(run: Finished, recorded: Recorded) -> list[str]:
    """Name the circumstances that differ from those of the stored runs and may change a result."""
    facts = circumstances(run.folder)
    meanings = {"precision": "precision", "data": "fingerprint of the data"}
    return [
        f"{meaning}: {str(facts[key])[:SHORT]}, of the stored runs {str(recorded.runs[0][key])[:SHORT]}"
        for key, meaning in meanings.items()
        if facts[key] not in [stored[key] for stored in recorded.runs]
    ]


def curve_notes(run: Finished, rows: Sequence[Row], recorded: Recorded) -> list[str]:
    """Say if the run repeats a stored seed, if no curve is compared, and if a run of all steps has no result."""
    end = last_step(recorded.curves)
    notes = [
        f"its losses are exactly those of the stored seed {seed}: agreement says little"
        for seed in repeated(run, recorded)
    ]
    if not rows:
        notes.append(f"no curve is compared: the run has not logged a whole tenth of {end} steps")
    if run.step == end and not run.is_finished:
        notes.append(f"all {end} steps are done, and result.json is missing: the command that began the run writes it")
    return notes


def repeated(run: Finished, recorded: Recorded) -> list[int]:
    """Return the stored seeds whose losses are those of the run at all steps that both have logged."""
    losses = run.columns.get(LOSS, {})
    pairs = {
        seed: [(losses[step], value) for step, value in curve[LOSS].items() if step in losses]
        for seed, curve in recorded.curves.items()
    }
    return [seed for seed, both in pairs.items() if both and all(stored_number(x) == stored_number(y) for x, y in both)]


def expected_values(entry: Entry, column: str, recorded: Recorded | None) -> list[float]:
    """Return the known values of a figure: those of the stored seeds, or else the published one."""
    if recorded is not None and (values := recorded.figures(entry, column)):
        return values
    published = entry.published_figure() if column == next(iter(entry.figures)) else None
    return [] if published is None else [published]


def figure_row(column: str, value: float, known: Sequence[float], figure: Figure) -> Row:
    """Compare a figure; its spread is at least the standard error of an accuracy on `figure.images` images."""
    mean = statistics.mean(known)
    spread = statistics.stdev(known) if len(known) > 1 else ASSUMED_SPREAD
    return Row(column, value, mean, max(spread, figure.standard_error(mean)))


def curve_rows(columns: Columns, curves: Mapping[int, Columns]) -> list[Row]:
    """Compare each curve at the steps that the run and all stored seeds have logged."""
    rows = []
    end = last_step(curves)
    for name in curve_names(curves):
        stored = [curve[name] for curve in curves.values()]
        logged = columns.get(name, {})
        steps = whole_windows(set(logged).intersection(*stored), end)
        if steps:
            values, *others = (windows({step: part[step] for step in steps}, end) for part in (logged, *stored))
            rows.append(curve_row(name, values, np.stack(others), end))
    return rows


def curve_names(curves: Mapping[int, Columns]) -> list[str]:
    """Return the names of the stored curves, without the figures."""
    return [name for name in next(iter(curves.values())) if name.startswith("train/")]


def last_step(curves: Mapping[int, Columns]) -> int:
    """Return the last step of the stored curves."""
    return max(step for name in curve_names(curves) for columns in curves.values() for step in columns[name])


def whole_windows(steps: Set[int], end: int) -> list[int]:
    """Leave out the last window of an unfinished run: an average of its first batches is noisier than the others."""
    num_whole = max(steps, default=0) * NUM_WINDOWS // end
    return [step for step in sorted(steps) if (step - 1) * NUM_WINDOWS // end < num_whole]


def curve_row(
    name: str, values: Float[np.ndarray, " windows"], stored: Float[np.ndarray, "seeds windows"], end: int
) -> Row:
    """Compare one curve in each window and over all of them, and return the largest difference."""
    # Windows with logged steps. The stored seeds say which: in their finite curves, NaN only means an empty window.
    places = np.flatnonzero(~np.isnan(stored).any(axis=0))
    values, stored = (np.maximum(part[..., places], SMALLEST) for part in (values, stored))
    means = stored.mean(axis=0)
    relative = stored.std(axis=0, ddof=1) / means
    pooled = max(math.sqrt(np.mean(relative**2)), LEAST_SPREAD)
    spreads = means * np.maximum(relative, pooled)
    rows = [
        Row(name, float(value), float(mean), float(spread), f"steps {place * end // NUM_WINDOWS + 1} to {last}")
        for place, value, mean, spread in zip(places.tolist(), values, means, spreads, strict=True)
        if (last := (place + 1) * end // NUM_WINDOWS)
    ]
    value, *averages = np.exp(np.log(np.stack([values, *stored])).mean(axis=1)).tolist()
    mean = statistics.mean(averages)
    spread = max(statistics.stdev(averages), mean * pooled / math.sqrt(len(places)), mean * LEAST_SPREAD)
    rows.append(Row(name, value, mean, spread, "all steps together"))
    return max(rows, key=lambda row: math.inf if math.isnan(row.difference) else abs(row.difference))


def windows(values: Mapping[int, float], end: int) -> Float[np.ndarray, " windows"]:
    """Average a column over equal parts of a run; NaN where nothing was logged.

    Args:
        values: value by step.
        end: last step of a whole run.
    """
    parts: list[list[float]] = [[] for _ in range(NUM_WINDOWS)]
    for step, value in values.items():
        parts[(step - 1) * NUM_WINDOWS // end].append(value)
    return np.array([statistics.fmean(part) if part else math.nan for part in parts])
