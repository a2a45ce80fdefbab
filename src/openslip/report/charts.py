"""Line charts of a run's metrics, as inline SVG that follows light and dark mode."""

import io
import re
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from openslip.report.pieces import escape, short
from openslip.report.run_files import AbsentError, Metrics, Series
from openslip.terminal import printable

MAX_POINTS = 800  # per curve
SMOOTHED_FROM = 60  # points from which a curve is smoothed

# Placeholder colours that are replaced by the page's CSS variables, so that a drawing follows light and dark mode.
INK, MUTED, GRID = "#000001", "#000002", "#000003"
COLOURS = ["#000011", "#000012", "#000013", "#000014", "#000015", "#000016"]
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line"} | {colour: f"s{n}" for n, colour in enumerate(COLOURS, 1)}
OPTIONS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may contain dollar signs
    "svg.hashsalt": "openslip",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.labelcolor": MUTED,
}


def curves(metrics: Metrics) -> str:
    """Draw a chart for each group of training metrics."""
    columns = metrics.columns
    losses = [name for name in columns if name.startswith("train/") and name.endswith("loss")]
    accuracies = [name for name in columns if name.startswith("train/") and name.endswith("acc")]
    drawn = []
    for title, names, unit, smooth in (
        ("Loss", losses, "", True),
        ("Accuracy within the batch", accuracies, "%", True),
        ("Logit scale", ["train/logit_scale"], "", False),
        ("Learning rate", ["train/lr"], "", False),
        ("Samples per second", ["speed/samples_per_second"], "", True),
    ):
        series = {name.split("/", 1)[1].replace("_", " "): columns[name] for name in names if name in columns}
        if series:
            drawn.append(chart(title, series, metrics.x_name, unit, smooth=smooth))
    if not drawn:
        raise AbsentError("there is no metrics.csv, or no training step in it")
    is_smoothed = any(len(columns[name].x) >= SMOOTHED_FROM for name in (*losses, *accuracies))
    note = "<p>Pale: as logged. Bold: its moving average.</p>" if is_smoothed else ""
    return f'{note}<div class="charts">{"".join(drawn)}</div>'


def chart(
    title: str,
    series: dict[str, Series],
    x_name: str,
    unit: str,
    *,
    smooth: bool = False,
    level: tuple[str, float] | None = None,
) -> str:
    """Draw a line chart as inline SVG.

    Args:
        title: title of the chart.
        series: one line per name.
        x_name: label of the x-axis.
        unit: unit of the y-axis, such as `%`; empty for none.
        smooth: whether long lines are drawn with their moving average.
        level: name and value of a horizontal line.
    """
    with mpl.rc_context(OPTIONS):
        has_legend = len(series) > 1 or level is not None
        figure = Figure(figsize=(4.6, 3.0))
        axes = figure.add_axes((0.135, 0.175, 0.85, 0.70 if has_legend else 0.78))
        for place, (name, (x, y)) in enumerate(series.items()):
            colour = COLOURS[place % len(COLOURS)]
            shown = np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int)
            if smooth and len(x) >= SMOOTHED_FROM:
                axes.plot(x[shown], y[shown], color=colour, linewidth=0.8, alpha=0.28)
                y = _moving_average(y, len(y) // 25)
            marker = {"marker": "o", "markersize": 3.5} if len(x) <= 25 else {}
            axes.plot(
                x[shown], y[shown], color=colour, linewidth=1.8, solid_capstyle="round", label=printable(name), **marker
            )
        if level is not None:
            axes.axhline(level[1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=printable(level[0]))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel(x_name, fontsize=11)
        axes.set_xlim(left=0)
        if unit == "%":
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if level else None)
        if has_legend:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(-0.01, 1.0),
                ncols=4,
                frameon=False,
                fontsize=11,
                handlelength=1.4,
                columnspacing=1.2,
                borderaxespad=0.2,
            )
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = stream.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    for colour, name in VARIABLES.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    label = escape(f"{title}{f', {unit}' if unit else ''}")
    ends = "; ".join(f"{name} ends at {short(one.last)}" for name, one in series.items())
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{escape(title)}: {escape(ends)}"', 1)
    return f'<figure class="card"><figcaption>{label}</figcaption>{drawing}</figure>'


def _moving_average(y: np.ndarray, window: int) -> np.ndarray:
    """Return the centred moving average, with shorter windows at both ends."""
    sums, counts = (np.convolve(values, np.ones(window), "same") for values in (y, np.ones(len(y))))
    return sums / counts
