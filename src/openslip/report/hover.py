"""Values of curves under the mouse: transparent strips with an SVG title each, which browsers show without a script."""

from collections.abc import Mapping

import numpy as np

from openslip.report.pieces import escape, exact
from openslip.report.run_files import Series

MAX_STRIPS = 60  # per chart
POINTS = 72  # SVG units per inch


def strips(
    series: Mapping[str, Series],
    x_name: str,
    unit: str,
    limits: tuple[float, float],
    area: tuple[float, float, float, float],
) -> str:
    """Return one strip per logged point, or per some of them, with the values of all curves at that point.

    Args:
        series: curves by name.
        x_name: label of the x-axis.
        unit: unit of the y-axis; empty for none.
        limits: values at the left and the right end of the x-axis.
        area: left, top, width and height of the axes, in inches.
    """
    left, top, width, height = (POINTS * value for value in area)
    low, high = limits
    points = np.unique(np.concatenate([one.x for one in series.values()]))
    points = points[np.linspace(0, len(points) - 1, min(len(points), MAX_STRIPS)).round().astype(int)]
    edges = np.clip([low, *(points[1:] + points[:-1]) / 2, high], low, high)
    rectangles = []
    for point, start, end in zip(points, edges[:-1], edges[1:], strict=True):
        nearest = {name: one.nearest(point) for name, one in series.items()}
        # Another run's curve may have no point in this strip.
        values = [f"{name}: {exact(y)} {unit}".rstrip() for name, (x, y) in nearest.items() if start <= x <= end]
        text = escape("\n".join([f"{exact(point)} {x_name}", *values]))
        x, wide = left + width * (start - low) / (high - low), width * (end - start) / (high - low)
        rectangles.append(
            f'<rect x="{x:.2f}" y="{top:.2f}" width="{wide:.2f}" height="{height:.2f}"><title>{text}</title></rect>'
        )
    return f'<g class="hover">{"".join(rectangles)}</g>'
