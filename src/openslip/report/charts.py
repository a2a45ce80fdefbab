"""Line charts as inline SVG that follows light and dark mode and shows values under the mouse."""

import io
import math
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from openslip.report.hover import strips
from openslip.report.pieces import escape, short
from openslip.report.run_files import Series

MAX_POINTS = 800  # per curve
SMOOTHED_FROM = 60  # points from which a curve is smoothed
VISIBLE = 0.01  # smallest visible standard deviation from the moving average, as a share of the curve's range

# Placeholder colours that are replaced by the page's CSS variables, so that a drawing follows light and dark mode.
INK, MUTED, GRID = "#000001", "#000002", "#000003"
COLOURS = ["#000011", "#000012", "#000013", "#000014", "#000015", "#000016"]
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line"} | {colour: f"s{n}" for n, colour in enumerate(COLOURS, 1)}
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # line styles of the first six curves, the next six and all others
OPTIONS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "openslip",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.labelcolor": MUTED,
}
WIDTH, HEIGHT = 4.6, 2.8  # inches
AXES = (0.135, 0.19, 0.85, 0.77)  # left, bottom, width and height, as shares of the drawing
CHARACTER = 0.023  # width of a character of a tick's label, as a share of the drawing


def chart(
    title: str,
    series: Mapping[str, Series],
    x_name: str,
    unit: str,
    *,
    smooth: bool = False,
    as_logged: bool = True,
    level: tuple[str, float] | None = None,
    places: Mapping[str, int] | None = None,
) -> str:
    """Draw a line chart as inline SVG; curves that are equal are drawn once, under all of their names.

    Args:
        title: title of the chart.
        series: one line per name.
        x_name: label of the x-axis.
        unit: unit of the y-axis, such as `%`; empty for none.
        smooth: whether long lines are drawn as their moving average.
        as_logged: whether a smoothed line is also drawn as logged, in a pale colour.
        level: name and value of a horizontal line.
        places: place of each name, which determines its colour; by default that in `series`.
    """
    lines = merged(series, places or {name: place for place, name in enumerate(series)})
    with mpl.rc_context(OPTIONS):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes(AXES)
        for place, (x, y) in lines.values():
            colour = COLOURS[place % len(COLOURS)]
            shown = np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int)
            average = moving_average(y) if smooth else None
            if average is not None and as_logged:
                axes.plot(x[shown], y[shown], color=colour, linewidth=0.8, alpha=0.28)
            marker = {"marker": "o", "markersize": 3.5} if len(x) <= 25 else {}
            axes.plot(
                x[shown],
                (y if average is None else average)[shown],
                color=colour,
                linewidth=1.8,
                linestyle=DASHES[min(place // len(COLOURS), 2)],
                solid_capstyle="round",
                **marker,
            )
        if level is not None:
            axes.axhline(level[1], color=MUTED, linewidth=1.2, linestyle=DASHES[1])
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=axis is axes.xaxis))
            axis.set_major_formatter(FuncFormatter(partial(tick, axis)))
        axes.set_xlabel(x_name, fontsize=11)
        axes.set_xlim(left=0)
        if unit == "%":
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if level else None)
        left = max(AXES[0], CHARACTER * max(map(len, tick_labels(axes.yaxis)), default=0))
        width = AXES[0] + AXES[2] - left
        axes.set_position((left, AXES[1], width, AXES[3]))
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        area = (left * WIDTH, (1 - AXES[1] - AXES[3]) * HEIGHT, width * WIDTH, AXES[3] * HEIGHT)
        hover = strips({name: one for name, (_, one) in lines.items()}, x_name, unit, axes.get_xlim(), area)
    drawing = stream.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = drawing.replace("</svg>", f"{hover}</svg>")
    for colour, name in VARIABLES.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    label = escape(f"{title}{f', {unit}' if unit else ''}")
    ends = "; ".join(f"{name} ends at {short(one.last)}" for name, (_, one) in lines.items())
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{escape(title)}: {escape(ends)}"', 1)
    names = legend(((name, place) for name, (place, _) in lines.items()), level and level[0])
    has_legend = len(series) > 1 or level is not None or places is not None
    return f'<figure class="card"><figcaption>{label}</figcaption>{names if has_legend else ""}{drawing}</figure>'


def tick(axis: Axis, value: float, _: int | None) -> str:
    """Format a tick in the unit of its axis' end (0, 5k and 10k), with enough digits to tell neighbours apart."""
    low, high = axis.get_view_interval()
    largest = max(abs(low), abs(high))
    return short(value, largest=largest, digits=max(4, math.ceil(math.log10(largest / (high - low))) + 2))


def tick_labels(axis: Axis) -> list[str]:
    """Return the labels of the ticks that an axis shows."""
    low, high = sorted(axis.get_view_interval())
    return [tick(axis, value, None) for value in axis.get_majorticklocs() if low <= value <= high]


def merged(series: Mapping[str, Series], places: Mapping[str, int]) -> dict[str, tuple[int, Series]]:
    """Merge equal curves, such as a total loss that has a single term, into one with all of their names.

    Returns:
        By name, the place of the first of the equal curves, and its points.
    """
    lines: list[tuple[list[str], Series]] = []
    for name, one in series.items():
        for equal, other in lines:
            if one.equals(other):
                equal.append(name)
                break
        else:
            lines.append(([name], one))
    return {" = ".join(equal): (places[equal[0]], one) for equal, one in lines}


def legend(lines: Iterable[tuple[str, int]], level: str | None = None) -> str:
    """Return the names of curves, each with a swatch of its colour."""
    items = [swatch(place) + escape(name) for name, place in lines]
    if level is not None:
        items.append(f'<i class="swatch dash1" style="--c:var(--muted)"></i>{escape(level)}')
    return f'<div class="legend">{"".join(f"<span>{item}</span>" for item in items)}</div>'


def swatch(place: int) -> str:
    """Return a short line in the colour of the curve at a place."""
    dashes, colour = divmod(place, len(COLOURS))
    return f'<i class="swatch dash{min(dashes, 2)}" style="--c:var(--s{colour + 1})"></i>'


def moving_average(y: np.ndarray) -> np.ndarray | None:
    """Return the centred moving average of a long curve, with shorter windows at both ends.

    It is None for a short curve, and for one that is smooth, which would only be drawn twice.
    """
    if len(y) < SMOOTHED_FROM:
        return None
    average = _moving_average(y, (len(y) // 25) | 1)
    return average if np.std(y - average) > VISIBLE * np.ptp(y) else None


def _moving_average(y: np.ndarray, window: int) -> np.ndarray:
    sums, counts = (np.convolve(values, np.ones(window), "same") for values in (y, np.ones(len(y))))
    return sums / counts
