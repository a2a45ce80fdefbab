"""Formats of the table of results: plain text for a terminal, Markdown, CSV and a self-contained HTML page."""

import csv
import html
import io
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from openslip.report.compared_tables import table
from openslip.report.evaluations import metric_name, metric_value
from openslip.report.page import document
from openslip.report.pieces import escape
from openslip.report.results import Cell, Line, Results
from openslip.terminal import printable

NONE = "-"


def heads(results: Results) -> list[str]:
    """Return the names of the table's columns after the first."""
    names = [checkpoint.label for checkpoint in results.checkpoints]
    return ["metric", *names, *(f"published: {name}" for name in results.published)]


def cells(line: Line) -> list[str]:
    """Return the texts of a line after the evaluation's name."""
    values = (NONE if cell is None else shown(line.metric, cell) for cell in line.cells)
    figures = (NONE if value is None else metric_value(line.metric, value) for value in line.published)
    return [metric_name(line.metric), *values, *figures]


def shown(metric: str, cell: Cell) -> str:
    """Return the text of a cell: the metric, and in brackets its difference to the published one in points."""
    difference = "" if cell.difference is None else f" ({cell.difference:+.1f})"
    return metric_value(metric, cell.value) + difference


def as_terminal(results: Results) -> str:
    """Return the table as plain text, as wide as the terminal."""
    grid = Table("evaluation")
    for head in heads(results):
        grid.add_column(printable(head), overflow="fold")  # the end of a name is the step
    for line in results.lines:
        grid.add_row(*map(printable, (line.evaluation, *cells(line))))
    console = Console(markup=False, file=io.StringIO(), width=Console().width)
    console.print(grid)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def as_markdown(results: Results) -> str:
    """Return the table in Markdown."""
    names = ["evaluation", *heads(results)]
    rows = [names, ["---", *("---:" if place else "---" for place in range(len(names) - 1))]]
    rows += [[line.evaluation, *cells(line)] for line in results.lines]
    return "".join(f"| {' | '.join(map(in_markdown, row))} |\n" for row in rows)


def in_markdown(text: str) -> str:
    """Escape a cell of a Markdown table."""
    return html.escape(printable(text), quote=False).replace("|", "\\|")


def as_csv(results: Results) -> str:
    """Return one row per checkpoint and evaluation, with all digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["checkpoint", "step", "evaluation", "metric", "value", "published", "difference"])
    for place, checkpoint in enumerate(results.checkpoints):
        for line in results.lines:
            if (cell := line.cells[place]) is not None:
                numbers = (checkpoint.step, cell.value, cell.published, cell.difference)
                step, *values = ("" if number is None else repr(number) for number in numbers)
                writer.writerow([printable(checkpoint.label), step, printable(line.evaluation), line.metric, *values])
    return stream.getvalue()


def as_html(results: Results) -> str:
    """Return a page with the table."""
    rows = {
        escape(f"{line.evaluation}: {metric_name(line.metric)}"): list(map(escape, cells(line)[1:]))
        for line in results.lines
    }
    count = len(results.checkpoints)
    title = f"{count} {'checkpoint' if count == 1 else 'checkpoints'}"
    note = "<p>In brackets: the difference to the published metric, in points.</p>" if results.published else ""
    builders = {"Results": lambda: note + table("evaluation", map(escape, heads(results)[1:]), rows, kind=" numbers")}
    return document("OpenSLIP results", title, "", builders)


FORMATS: dict[str, Callable[[Results], str]] = {
    "terminal": as_terminal,
    "markdown": as_markdown,
    "csv": as_csv,
    "html": as_html,
}
