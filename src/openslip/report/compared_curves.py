"""Charts of a comparison: one per metric, with one line per run."""

from collections.abc import Sequence

import numpy as np

from openslip.evaluation.evaluation import is_share
from openslip.report.charts import chart, moving_average
from openslip.report.compared_run import SPEED, ComparedRun, columns_of, evaluation_of
from openslip.report.evaluations import EMA, metric_name
from openslip.report.run_files import Series, check
from openslip.report.training import SMOOTHED, curve_name, grid


def curves(runs: Sequence[ComparedRun]) -> str:
    """Draw a chart for each metric that changes in a run; a run has one colour in all of them."""
    x_name = " or ".join(dict.fromkeys(run.metrics.x_name for run in runs if run.metrics.columns))
    places = {run.name: place for place, run in enumerate(runs)}
    drawn: list[str] = []
    terms: list[dict[str, Series]] = []
    is_smoothed = False
    for column in columns_of(runs):
        is_term = column.startswith(("train/", "val/"))
        if of_evaluation := evaluation_of(column):
            evaluation, metric = of_evaluation
            title, unit = f"{evaluation}: {metric_name(metric)}", "%" if is_share(metric.removesuffix(EMA)) else ""
        elif is_term or column == SPEED:
            name = curve_name(column)
            title, unit = name[:1].upper() + name[1:], "%" if column.endswith("acc") else ""
        else:
            continue
        series = {run.name: run.metrics.columns[column] for run in runs if column in run.metrics.columns}
        has_curve = any(np.ptp(one.y) for one in series.values())
        # A total loss with a single term is logged twice; metrics of evaluations that are equal are a result.
        if not has_curve or (is_term and any(are_equal(series, other) for other in terms)):
            continue
        if is_term:
            terms.append(series)
        smooth = column.endswith(SMOOTHED)
        is_smoothed |= smooth and any(moving_average(one.y) is not None for one in series.values())
        drawn.append(chart(title, series, x_name, unit, smooth=smooth, as_logged=False, places=places))
    check(bool(drawn), "no metric changes in any run")
    note = "<p>Losses, accuracies within the batch and speeds: moving averages.</p>" if is_smoothed else ""
    return note + grid(drawn)


def are_equal(first: dict[str, Series], second: dict[str, Series]) -> bool:
    """Whether two metrics have the same values in every run, such as a total loss and its only term."""
    return first.keys() == second.keys() and all(one.equals(second[name]) for name, one in first.items())
