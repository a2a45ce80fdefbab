"""An evaluation's section: its metrics, their charts, and its arrays."""

import re
from pathlib import Path

from openslip.report.charts import chart
from openslip.report.classification import classification
from openslip.report.pieces import escape, percent, short
from openslip.report.run_files import AbsentError, Metrics, Series, read_arrays


def evaluation(folder: Path, name: str, metrics: Metrics) -> str:
    """An evaluation's metrics and charts, and what its arrays show."""
    prefix = f"eval/{name}/"
    series = {key.removeprefix(prefix): value for key, value in metrics.columns.items() if key.startswith(prefix)}
    cells = []
    for metric, one in series.items():
        is_share = metric.startswith(("top", "chance"))
        value = percent(one.last) if is_share else f"{one.last:,.0f}" if metric.startswith("num_") else short(one.last)
        cells.append(f"<div><dt>{escape(_metric_name(metric))}</dt><dd>{value}</dd></div>")
    parts = [f'<dl class="metrics">{"".join(cells)}</dl>' if cells else "", _charts(series, metrics.x_name)]
    try:
        parts += classification(read_arrays(folder, name), name)
    except AbsentError as reason:
        if not cells:
            raise
        parts.append(f"<p>No images and no mistakes here: {escape(reason)}.</p>")
    return "".join(parts)


def _metric_name(metric: str) -> str:
    return re.sub(r"\btop(\d)", r"top-\1", metric.replace("num_", "").replace("_", " "))


def _charts(series: dict[str, Series], x_name: str) -> str:
    level = ("chance", series["chance"].last) if "chance" in series else None
    main = {_metric_name(key): one for key, one in series.items() if key in ("top1", "top5")}
    others = {_metric_name(key): one for key, one in series.items() if key.startswith("top1_")}
    charts = [
        chart(title, lines, x_name, "%", level=line)
        for title, lines, line in (("Accuracy", main, level), ("Accuracy by attribute", others, None))
        if lines and max(len(one.x) for one in lines.values()) > 1
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""
