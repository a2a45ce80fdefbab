"""Small drawings as inline SVG that follows light and dark mode: a map of points, and a reliability diagram."""

from collections.abc import Sequence

import numpy as np

from openslip.report.pieces import escape

MAP, MARGIN, RADIUS = 720, 12, 4.5  # sizes of the map and its points, in SVG units, which are pixels on a wide screen
SIDE = 340  # width of the reliability diagram
LEFT, TOP, PLOT, HISTOGRAM = 40, 8, 210, 34  # sizes of the reliability diagram
TICKS = (0, 25, 50, 75, 100)


def point_map(groups: Sequence[tuple[np.ndarray, Sequence[int], Sequence[str], bool]], label: str) -> str:
    """Draw points of a plane, with equal scale along both axes and a text for each point under the mouse.

    Args:
        groups: for each group of points, their coordinates [points, 2], the places of their colours, their texts, and
            whether they are drawn as diamonds instead of circles.
        label: what the drawing shows, for screen readers.
    """
    points = np.concatenate([group[0] for group in groups]).astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (MAP - 2 * MARGIN) / max(float((high - low).max()), 1e-9)
    width, height = ((high - low) * scale + 2 * MARGIN).round(1)
    height = max(height, MAP / 3)
    marks = []
    for coordinates, colours, texts, is_diamond in groups:
        for (x, y), colour, text in zip(coordinates, colours, texts, strict=True):
            x, y = MARGIN + (x - low[0]) * scale, height - MARGIN - (y - low[1]) * scale
            r = RADIUS * 1.2
            shape = (
                f'<path d="M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}-{r:.1f} {r:.1f}-{r:.1f}-{r:.1f}z"'
                if is_diamond
                else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"'
            )
            end = "</path>" if is_diamond else "</circle>"
            marks.append(f'{shape} fill="var(--s{colour + 1})"><title>{escape(text)}</title>{end}')
    return (
        f'<svg class="points" role="img" aria-label="{escape(label)}" viewBox="0 0 {width:.0f} {height:.0f}">'
        f"{''.join(marks)}</svg>"
    )


def reliability(accuracy: Sequence[float], probability: Sequence[float], counts: Sequence[int], label: str) -> str:
    """Draw a reliability diagram: accuracy by bin of probability, a line where both are equal, and the bins' sizes.

    Guo et al. 2017, arXiv:1706.04599, figure 1.

    Args:
        accuracy: share of right predictions in each bin, 0 to 1.
        probability: mean probability in each bin, 0 to 1.
        counts: predictions in each bin.
        label: what the drawing shows, for screen readers.
    """
    width, bins = (SIDE - LEFT - 10), len(counts)
    bottom, base = TOP + PLOT, TOP + PLOT + 8 + HISTOGRAM
    parts = [
        f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
        f'<text x="{LEFT + width * tick / 100:.1f}" y="{base + 15}" text-anchor="middle">{tick}</text>'
        for tick in TICKS
        for y in [bottom - PLOT * tick / 100]
    ]
    hover = []
    for place, (right, mean, count) in enumerate(zip(accuracy, probability, counts, strict=True)):
        x, wide = LEFT + width * place / bins, width / bins
        if not count:
            continue
        size = HISTOGRAM * count / max(counts)
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{bottom - PLOT * right:.1f}" width="{wide - 2:.1f}" height="{PLOT * right:.1f}" '
            'fill="var(--s1)"/>'
            f'<line x1="{x:.1f}" x2="{x + wide:.1f}" y1="{bottom - PLOT * mean:.1f}" y2="{bottom - PLOT * mean:.1f}" '
            'stroke="var(--s2)" stroke-width="2"/>'
            f'<rect x="{x + 1:.1f}" y="{base - size:.1f}" width="{wide - 2:.1f}" height="{size:.1f}" '
            'fill="var(--muted)"/>'
        )
        text = (
            f"probability {100 * place / bins:.0f} to {100 * (place + 1) / bins:.0f} %: {count:,} predictions\n"
            f"mean probability {100 * mean:.1f} %\nright {100 * right:.1f} %"
        )
        hover.append(
            f'<rect x="{x:.1f}" y="{TOP}" width="{wide:.1f}" height="{base - TOP}"><title>{escape(text)}</title></rect>'
        )
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {SIDE} {base + 36}">{"".join(parts)}'
        f'<line x1="{LEFT}" y1="{bottom}" x2="{LEFT + width}" y2="{TOP}" stroke="var(--ink)" stroke-dasharray="4 4"/>'
        f'<text x="{LEFT + width / 2}" y="{base + 32}" text-anchor="middle">probability of the prediction, %</text>'
        f'<g class="hover">{"".join(hover)}</g></svg>'
    )
