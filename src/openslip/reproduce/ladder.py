"""The ladder as a table for the terminal: what each run needs, costs and should give, and where it has been run."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from openslip.reproduce.curves import Recorded, read_recorded
from openslip.reproduce.rungs import Entry, Rung
from openslip.terminal import width, wrapped

NAME, EXPECTED, COST = 26, 23, 12  # widths of the first columns
HEAD = (
    "Runs from a laptop to the paper. `openslip reproduce NAME` trains one and compares it with the stored curves; "
    "`openslip reproduce NAME --run RUN` compares a run that exists; with the letter of a rung, such as d, it "
    "shows the commands of its runs. Figures are in per cent; those of seeds are their mean (lowest to highest). est.: "
    "estimated, not measured."
)


def ladder_lines(rungs: Sequence[Rung], folder: Path) -> Iterator[str]:
    """Yield the lines of the table.

    Args:
        rungs: the rungs, the lowest first.
        folder: folder of stored curves.
    """
    yield from wrapped(HEAD, width(), indent=0)
    for rung in rungs:
        yield ""
        yield from rung_lines(rung)
        yield from figure_lines(rung)
        yield f"    {'NAME':{NAME}} {'expected':{EXPECTED}} {'time':{COST}} run"
        for entry in rung.entries.values():
            yield from entry_lines(entry, read_recorded(entry.name, folder))


def rung_lines(rung: Rung) -> Iterator[str]:
    """Yield what a rung is and needs."""
    title = f"({rung.letter}) {rung.name}: {rung.meaning}"
    for text in (title, f"    needs: {rung.needs}", f"    machine: {rung.machine}"):
        yield from wrapped(text, width(), indent=8)


def figure_lines(rung: Rung) -> Iterator[str]:
    """Yield what the figures of a rung's runs measure."""
    figures = (item for entry in rung.entries.values() for item in entry.figures.items())
    for line in dict.fromkeys(f"    {metric(column)}: {figure.described()}" for column, figure in figures):
        yield from wrapped(line, width(), indent=8)


def entry_lines(entry: Entry, recorded: Recorded | None) -> Iterator[str]:
    """Yield a run's row, a line for each figure if there are several, and a line for the machines that ran it."""
    where = "not run" if recorded is None else f"{len(recorded.curves)} seeds"
    figures = {column: expected(entry, column, recorded) for column in entry.figures}
    figure = "" if len(figures) > 1 else next(iter(figures.values()))
    yield f"    {entry.name:{NAME}} {figure:{EXPECTED}} {cost(entry, recorded):{COST}} {where}"
    for column, figure in figures.items() if len(figures) > 1 else ():
        yield f"      {metric(column):{NAME - 2}} {figure}"
    for line in () if recorded is None else dict.fromkeys(map(machine_line, recorded.runs)):
        yield from wrapped(f"      {line}", width())


def metric(column: str) -> str:
    """Return the name of a figure within its evaluation: `top1_seen` of `eval/openclipart/top1_seen`."""
    return column.rpartition("/")[2]


def machine_line(run: dict[str, object]) -> str:
    """Say where a recorded run was trained."""
    return f"run on {run['machine']}, {run['precision']}, torch {run['torch']}"


def expected(entry: Entry, column: str, recorded: Recorded | None) -> str:
    """Return the expected value of a figure with its spread over the seeds, or the published one."""
    if recorded is not None and (values := recorded.figures(entry, column)):
        return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
    published = entry.published_figure() if column == next(iter(entry.figures)) else None
    if published is None:
        return "not measured"
    kind = "best" if entry.best else "" if entry.accuracy == "zero_shot" else entry.accuracy
    return f"{published:.1f} published" + (f" ({kind})" if kind else "")


def cost(entry: Entry, recorded: Recorded | None) -> str:
    """Return the time of a run: measured, estimated or unknown."""
    if recorded is not None and (minutes := recorded.minutes()) is not None:
        return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    return "not measured" if entry.hours is None else f"{entry.hours:g} h est."


def entry_details(entry: Entry, recorded: Recorded | None) -> Iterator[str]:
    """Yield what a run should give and costs, and its commands."""
    yield entry.name
    for column, figure in entry.figures.items():
        line = f"    expected, in per cent: {expected(entry, column, recorded)}, {figure.described()}"
        yield from wrapped(line, width(), indent=8)
    yield f"    time: {cost(entry, recorded)}"
    yield from (f"    {command}" for command in commands(entry))


def commands(entry: Entry) -> list[str]:
    """Return the commands of a run: `openslip plan` if its hours are estimated, training, evaluation, comparison."""
    settings = " ".join(entry.settings)
    plan = [f"openslip plan {settings}"] if entry.hours is not None else []
    train = f"openslip train {settings}".rstrip()
    return [*plan, train, *entry.after, f"openslip reproduce {entry.name} --run RUN"]
