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

from openslip.reproduce.curves import Columns, Recorded, final
from openslip.reproduce.finished import Finished, circumstances, config_differences, described
from openslip.reproduce.rungs import Entry, Figure

LIMIT = 5.0  # 4.97 = 4.303 (97.5 % of Student's t with 2 degrees of freedom) * sqrt(1 + 1/3)
NUM_WINDOWS = 10
LEAST_SPREAD = 0.005  # floor of a curve's spread, relative to its value
SMALLEST = 1e-9  # stands for 0, such as the loss of a term that is switched off
ASSUMED_SPREAD = 0.2  # points; for published figures, of which one run is known
MOST_SETTINGS = 8  # that are printed

SPREAD = "their standard deviation, or a floor if that is larger"
PUBLISHED = f"{ASSUMED_SPREAD} points, which is assumed: one run was published"


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
        missing: figures that the run does not have.
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
    figures = {column: final(run.columns, column, best=entry.best) for column in entry.figures}
    for column, figure in entry.figures.items():
        value, known = figures[column], expected_values(entry, column, recorded)
        if value is not None and known and run.is_finished:
            rows.append(figure_row(column, value, known, figure))
    missing = [column for column, value in figures.items() if value is None and run.is_finished]
    notes = [] if recorded is None else other_circumstances(run, recorded)
    return Comparison(rows, described(config_differences(run.config, given)), missing, notes)


def other_circumstances(run: Finished, recorded: Recorded) -> list[str]:
    """Name the circumstances that differ from those of the stored runs and may change a result."""
    facts = circumstances(run.folder)
    meanings = {"precision": "precision", "data": "fingerprint of the data"}
    return [
        f"{meaning}: {facts[key]}, of the stored runs {recorded.runs[0][key]}"
        for key, meaning in meanings.items()
        if facts[key] not in [stored[key] for stored in recorded.runs]
    ]


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
    for name in (name for name in next(iter(curves.values())) if name.startswith("train/")):
        stored = [curve[name] for curve in curves.values()]
        logged = columns.get(name, {})
        end = max(map(max, stored))
        steps = whole_windows(set(logged).intersection(*stored), end)
        if steps:
            values, *others = (windows({step: part[step] for step in steps}, end) for part in (logged, *stored))
            rows.append(curve_row(name, values, np.stack(others), end))
    return rows


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


def comparison_lines(comparison: Comparison, run: Finished, entry: Entry, recorded: Recorded | None) -> list[str]:
    """Return the lines that show a comparison and its verdict."""
    of_what = f"the {len(recorded.curves)} stored seeds of {entry.name}" if recorded else f"{entry.name} as published"
    lines = [
        f"{run.folder} beside {of_what}",
        f"a spread is {SPREAD if recorded else PUBLISHED};",
        f"a difference of more than {LIMIT:g} spreads deviates",
        f"  {'':28} {'run':>9} {'expected':>9} {'spread':>8} {'difference':>11}",
    ]
    for row in comparison.rows:
        numbers = f"{row.value:9.4g} {row.expected:9.4g} {row.spread:8.2g} {row.difference:+7.1f} sp."
        lines.append(f"  {row.name:28} {numbers} {'DEVIATES' if row.deviates else ''}".rstrip())
        lines += [f"    largest difference: {row.where}"] if row.where else []
    lines += [f"  {note}" for note in comparison.notes]
    lines += [f"  another setting: {setting}" for setting in comparison.settings[:MOST_SETTINGS]]
    if (num_others := len(comparison.settings) - MOST_SETTINGS) > 0:
        lines.append(f"  and {num_others} more settings")
    lines += [f"  missing: {column}" for column in comparison.missing]
    if comparison.deviates:
        return [*lines, "deviates"]
    if not run.is_finished:
        return [*lines, f"no deviation so far; the run is at step {run.step} and not finished"]
    return [*lines, "no deviation"]
