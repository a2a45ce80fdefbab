"""Tables of a comparison: the runs and their provenance, their final metrics, and the settings that differ."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from openslip.report.charts import swatch
from openslip.report.compared_run import SPEED, ComparedRun, columns_of, evaluation_of
from openslip.report.differences import differences
from openslip.report.evaluations import metric_name, metric_value
from openslip.report.header import method, provenance
from openslip.report.pieces import escape, exact, percent
from openslip.report.run_files import Series, check
from openslip.report.training import curve_name


def computation(runs: Sequence[ComparedRun], path: Path) -> str:
    """Build the table of runs, with links to their own reports, their lengths and their provenance."""
    facts = []
    for run in runs:
        seen = f"{run.metrics.x:,.0f}" if run.metrics.x_name == "samples seen" else ""
        length = {"steps": "" if run.metrics.step is None else f"{run.metrics.step:,}", "samples seen": seen}
        facts.append({"method": escape(method(run.config) or ""), **length, **provenance(run.folder)})
    names = [name for name in dict.fromkeys(name for row in facts for name in row) if any(r.get(name) for r in facts)]
    rows = {
        f"{swatch(place)}{link(run, path)}": [row.get(name, "") for name in names]
        for place, (run, row) in enumerate(zip(runs, facts, strict=True))
    }
    return table("run", names, rows)


def link(run: ComparedRun, path: Path) -> str:
    """Return a run's name as a link to its own report, or its name alone if it has none.

    Args:
        run: the run.
        path: the page that holds the link.
    """
    report = run.folder / "report.html"
    if not report.is_file():
        return f'<span title="openslip report {escape(run.folder)} writes its page">{escape(run.name)}</span>'
    address = os.path.relpath(report.resolve(), path.resolve().parent)
    return f'<a href="{quote(address)}">{escape(run.name)}</a>'


def final_metrics(runs: Sequence[ComparedRun]) -> str:
    """Build the table of the last logged value of each metric, evaluations first."""
    columns, rows = columns_of(runs), {}
    for column in columns:
        if of_evaluation := evaluation_of(column):
            evaluation, metric = of_evaluation
            cells = [cell(run, column, lambda one, metric=metric: metric_value(metric, one.last)) for run in runs]
            rows[escape(f"{evaluation}: {metric_name(metric)}")] = cells
    for column in columns:
        if column.startswith(("train/", "val/")) and column.endswith(("loss", "acc")):
            form = percent if column.endswith("acc") else exact
            rows[escape(curve_name(column))] = [
                cell(run, column, lambda one, form=form: form(one.last)) for run in runs
            ]
    if SPEED in columns:
        rows["samples per second, median"] = [
            cell(run, SPEED, lambda one: exact(float(np.median(one.y)))) for run in runs
        ]
    check(bool(rows), "no run has logged a metric")
    return table("metric", heads(runs), rows, kind=" numbers")


def cell(run: ComparedRun, column: str, form: Callable[[Series], str]) -> str:
    """Return a metric of a run in a form; a dash if the run did not log it."""
    return form(run.metrics.columns[column]) if column in run.metrics.columns else "&ndash;"


def settings(runs: Sequence[ComparedRun]) -> str:
    """Build the table of the settings that differ; keys with the same values share a row."""
    for run in runs:
        check(bool(run.config), f"{run.name} has no readable config.yaml")
    rows = {}
    for (key, *more), texts in differences([run.config for run in runs]):
        hint = escape("\n".join(more))
        others = f' <span class="note" title="{hint}">and {len(more)} more</span>' if more else ""
        rows[breakable(key) + others] = list(map(breakable, texts))
    check(bool(rows), "all settings are equal, except name and runs_dir")
    return table("setting", heads(runs), rows)


def breakable(text: str) -> str:
    """Escape a dotted key or a value, which may be broken after its dots and underscores."""
    return escape(text).replace(".", ".<wbr>").replace("_", "_<wbr>")


def heads(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the column heads of a table with one column per run."""
    return [swatch(place) + escape(run.name) for place, run in enumerate(runs)]


def table(corner: str, heads: Iterable[str], rows: dict[str, list[str]], kind: str = "") -> str:
    """Return a table that scrolls sideways in its own box.

    Args:
        corner: head of the first column.
        heads: HTML of the other columns' heads.
        rows: HTML of the cells by HTML of the row's head.
        kind: further CSS classes, each with a space before it.
    """
    head = "".join(f'<th scope="col">{name}</th>' for name in (corner, *heads))
    body = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{content}</td>" for content in cells)}</tr>'
        for name, cells in rows.items()
    )
    return (
        f'<div class="card scroll"><table class="plain compared{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
