"""The comparison of a run with stored curves, as a table for the terminal."""

import shlex
from collections.abc import Iterator

from openslip.reproduce.comparison import ASSUMED_SPREAD, LIMIT, Comparison, Row
from openslip.reproduce.curves import Recorded
from openslip.reproduce.finished import Finished
from openslip.reproduce.rungs import Entry, Figure
from openslip.terminal import width, wrapped

MOST_SETTINGS = 8  # that are printed
SPREAD = "a spread is their standard deviation, or a floor if that is larger"
PUBLISHED = f"a spread is {ASSUMED_SPREAD} points, which is assumed: one run was published"
HEAD = (
    f"{SPREAD}; a difference of more than {LIMIT:g} spreads deviates. Of a curve, the means over the steps that are "
    "named below it are shown."
)
HEAD_PUBLISHED = f"{PUBLISHED}; a difference of more than {LIMIT:g} spreads deviates."
MOST_DIGITS = 4  # of a difference near the limit


def comparison_lines(comparison: Comparison, run: Finished, entry: Entry, recorded: Recorded | None) -> Iterator[str]:
    """Yield the lines that show a comparison and its verdict."""
    of_what = f"the {len(recorded.curves)} stored seeds of {entry.name}" if recorded else f"{entry.name} as published"
    yield f"{run.folder} beside {of_what}"
    yield from wrapped(HEAD if recorded else HEAD_PUBLISHED, width(), indent=0)
    yield f"  {'':28} {'run':>9} {'expected':>9} {'spread':>8} {'difference':>11}"
    for row in comparison.rows:
        yield from row_lines(row, entry.figures.get(row.name))
    for note in comparison.notes:
        yield from wrapped(f"  {note}", width())
    yield from (f"  another setting: {setting}" for setting in comparison.settings[:MOST_SETTINGS])
    if (num_others := len(comparison.settings) - MOST_SETTINGS) > 0:
        yield f"  and {num_others} more settings"
    yield from (f"  missing: {column}" for column in comparison.missing)
    if not entry.figures.keys().isdisjoint(comparison.missing):
        folder = shlex.quote(str(run.folder))
        yield from (f"  next: {command.replace('RUN', folder)}" for command in entry.after)
    verdict = "deviates" if comparison.deviates else "no deviation"
    yield verdict if run.is_finished else f"{verdict} so far; the run is at step {run.step} and not finished"


def row_lines(row: Row, figure: Figure | None) -> Iterator[str]:
    """Yield the numbers of a row, and what a curve's numbers are the means of or what a figure measures."""
    numbers = f"{digits(row.value, 4):>9} {digits(row.expected, 4):>9} {digits(row.spread, 2):>8}"
    verdict = "DEVIATES" if row.deviates else ""
    yield f"  {row.name:28} {numbers} {in_spreads(row.difference):>7} sp. {verdict}".rstrip()
    if figure is None:
        yield f"    largest difference: {row.where}"
        return
    meaning = figure.described()
    if figure.chance is not None and not row._replace(value=figure.chance).deviates:
        meaning += ": chance would not deviate"
    yield from wrapped(f"    {meaning}", width())


def digits(value: float, number: int) -> str:
    """Return a value with so many significant digits, also if the last ones are zeros."""
    return f"{value:#.{number}g}".rstrip(".")


def in_spreads(difference: float) -> str:
    """Return a difference with one decimal, or with so many that one above `LIMIT` does not look like `LIMIT`."""
    texts = [f"{difference:+z.{decimals}f}" for decimals in range(1, MOST_DIGITS + 1)]
    is_clear = [(abs(float(text)) > LIMIT) == (abs(difference) > LIMIT) for text in texts]
    return texts[is_clear.index(True) if True in is_clear else -1]
