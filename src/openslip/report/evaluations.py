"""Section of an evaluation: its metrics, their charts, and for a classification confusions, images and mistakes."""

import re
from pathlib import Path

import numpy as np

from openslip.evaluation.evaluation import is_share
from openslip.report.charts import chart
from openslip.report.diagnosis import by_class, by_template, calibration
from openslip.report.geometry import geometry, is_geometry
from openslip.report.image_map import image_map, is_image_map
from openslip.report.pieces import escape, heat, image_tag, matrix, percent, short
from openslip.report.run_files import AbsentError, Metrics, NoPredictionsError, Series, check, read_arrays
from openslip.report.training import grid

EMA = " (EMA)"  # ends the name of a metric of the EMA weights
GAIN = "ensemble_gain"  # begins the names of metrics in points
MAX_IMAGES = 12  # fills rows of one, two, three and four
MAX_CLASSES = 1_000_000
MAX_MATRIX = 24  # rows of the largest confusion matrix that is still readable


def evaluation(folder: Path, name: str, metrics: Metrics) -> str:
    """Build the section of an evaluation: metrics, charts, and the results in its arrays.

    Args:
        folder: the run's folder.
        name: name of the evaluation.
        metrics: all metrics of the run.
    """
    series = {metric: metrics.columns[f"eval/{name}/{metric}"] for metric in metrics.of_evaluation("eval", name)}
    series |= {
        f"{metric}{EMA}": metrics.columns[f"eval_ema/{name}/{metric}"]
        for metric in metrics.of_evaluation("eval_ema", name)
        if metric != "chance" and not metric.startswith("num_")
    }
    cells = []
    for metric, one in series.items():
        cells.append(f"<div><dt>{escape(metric_name(metric))}</dt><dd>{metric_value(metric, one.last)}</dd></div>")
    parts = [f'<dl class="metrics">{"".join(cells)}</dl>' if cells else "", _charts(series, metrics.x_name)]
    try:
        if arrays := read_arrays(folder, name, metrics.arrays):
            kinds = ((is_geometry, geometry), (is_image_map, image_map))
            build = next((build for is_kind, build in kinds if is_kind(arrays)), classification)
            parts += build(arrays, name)
    except AbsentError as reason:
        if not cells:
            raise
        if not isinstance(reason, NoPredictionsError):
            parts.append(f"<p>No images and no mistakes here: {escape(reason)}.</p>")
    return "".join(parts)


def metric_name(metric: str) -> str:
    """Return the name of an evaluation's metric as it is shown."""
    return re.sub(r"\btop(\d)", r"top-\1", metric.replace("num_", "").replace("_percent", "").replace("_", " "))


def metric_value(metric: str, value: float) -> str:
    """Format the value of an evaluation's metric."""
    if is_share(metric.removesuffix(EMA)):
        return percent(value)
    if metric.startswith(GAIN):
        return f"{value:+.2f} points"
    return f"{value:,.0f}" if metric.startswith("num_") else short(value)


def _charts(series: dict[str, Series], x_name: str) -> str:
    level = ("chance", series["chance"].last) if "chance" in series else None
    groups: dict[str, list[str]] = {}
    for metric in series:
        if not metric.startswith(("chance", "num_")):
            groups.setdefault(_chart_title(metric), []).append(metric)
    charts = [
        chart(
            title,
            {metric_name(metric): series[metric] for metric in metrics},
            x_name,
            "%" if is_share(metrics[0].removesuffix(EMA)) else "",
            level=level if title == "Accuracy" else None,
        )
        for title, metrics in groups.items()
        if max(len(series[metric].x) for metric in metrics) > 1
    ]
    return grid(charts) if charts else ""


def _chart_title(metric: str) -> str:
    """Return the title of the chart in which a metric is drawn, which related metrics share."""
    metric = metric.removesuffix(EMA)
    if re.fullmatch(r"top\d+", metric):
        return "Accuracy"
    if metric.startswith("top1_"):
        return "Accuracy by attribute"
    if "recall" in metric:
        return "Recall"
    if metric.startswith(GAIN):
        return "What the prompt ensemble gains, points"
    if metric.endswith("_acc"):
        return "Accuracy within the batch"
    return "Loss" if metric.endswith("loss") else metric_name(metric)


def classification(arrays: dict[str, np.ndarray], name: str) -> list[str]:
    """Build the parts that show labels and predictions: confusion matrices, images, mistakes.

    Args:
        arrays: arrays of the evaluation, by name.
        name: name of the evaluation, for error messages.
    """
    if not {"labels", "predictions"} <= arrays.keys():
        raise NoPredictionsError(f"arrays/{name}.npz holds no labels and predictions")
    labels, predictions = arrays["labels"], arrays["predictions"]
    try:
        check(labels.ndim == 1 and labels.shape == predictions.shape and len(labels) > 0, "labels differ in shape")
        check(labels.dtype.kind in "iu" and predictions.dtype.kind in "iu", "labels are not whole numbers")
        check(min(labels.min(), predictions.min()) >= 0, "there is a negative label")
        highest = int(max(labels.max(), predictions.max()))
        check(highest < len(arrays.get("classnames", range(MAX_CLASSES))), f"label {highest} has no name")
        names = [str(name) for name in arrays.get("classnames", range(highest + 1))]
        return [
            _confusions(arrays, names),
            _images(arrays, names),
            _mistakes(labels, predictions, names),
            by_class(labels, predictions, names),
            by_template(arrays),
            calibration(arrays),
        ]
    # A user's evaluation may store other data under these names, which must not prevent the report.
    except (AbsentError, IndexError, KeyError, TypeError, ValueError) as error:
        raise AbsentError(f"arrays/{name}.npz does not hold a classification ({error})") from error


def _confusions(arrays: dict[str, np.ndarray], names: list[str]) -> str:
    labels, predictions = arrays["labels"], arrays["predictions"]
    tables = []
    has_attributes = {"attribute_names", "attribute_values"} <= arrays.keys()
    if has_attributes:
        for attribute, values in zip(arrays["attribute_names"], arrays["attribute_values"], strict=True):
            distinct = list(dict.fromkeys(map(str, values)))
            place = {value: number for number, value in enumerate(distinct)}
            of_class = np.array([place[str(value)] for value in values])
            if len(distinct) <= MAX_MATRIX:
                tables.append(_confusion(str(attribute), distinct, of_class[labels], of_class[predictions], of_class))
    elif len(names) <= MAX_MATRIX:
        tables.append(_confusion("class", names, labels, predictions, np.arange(len(names))))
    if not tables:
        return ""
    by = "attribute" if has_attributes else "class"
    return (
        f"<h3>Confusion matrix by {by}</h3><p>Rows: the true {by}. Columns: the predicted {by}. Per cent of "
        "the row; the diagonal is correct.</p>"
        f'<div class="matrices">{"".join(tables)}</div>'
    )


def _confusion(title: str, values: list[str], truth: np.ndarray, said: np.ndarray, of_class: np.ndarray) -> str:
    counts = np.zeros((len(values), len(values)), dtype=np.int64)
    np.add.at(counts, (truth, said), 1)
    totals = counts.sum(axis=1)
    right = 100 * np.trace(counts) / max(counts.sum(), 1)
    share_of_value = np.bincount(of_class, minlength=len(values)) / len(of_class)
    chance = 100 * float(share_of_value[truth].mean())
    rows = []
    for row, value in enumerate(values):
        cells = []
        for column, other in enumerate(values):
            share = counts[row, column] / totals[row] if totals[row] else 0.0
            hint = f"{value} taken for {other}: {counts[row, column]:,} of {totals[row]:,}"
            text = "&ndash;" if not totals[row] else f"{100 * share:.0f}" if counts[row, column] else ""
            cells.append(heat(share, text, hint, diagonal=row == column))
        rows.append((escape(value), cells))
    head = (f'<th scope="col"><span>{escape(value)}</span></th>' for value in values)
    return (
        f'<figure class="card"><figcaption><b>{escape(title)}</b> {percent(float(right))} right, '
        f'chance {percent(chance)}</figcaption><div class="scroll">'
        f"{matrix(' turned' if len(values) > 4 else '', head, rows)}</div></figure>"
    )


def _mistakes(labels: np.ndarray, predictions: np.ndarray, names: list[str]) -> str:
    wrong = labels != predictions
    if not wrong.any() or len(names) <= 2:
        return ""
    pairs, counts = np.unique(np.stack([labels[wrong], predictions[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:10]
    totals = np.bincount(labels, minlength=len(names))
    rows = "".join(
        f"<tr><td>{escape(names[truth])}</td><td>{escape(names[said])}</td>"
        f'<td class="number">{counts[place]:,} of {totals[truth]:,}</td></tr>'
        for place, (truth, said) in zip(order, pairs.T[order], strict=True)
    )
    return (
        "<h3>Most frequent mistakes</h3>"
        '<div class="scroll"><table class="plain"><thead><tr><th>truth</th><th>model says</th>'
        f'<th class="number">images</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _images(arrays: dict[str, np.ndarray], names: list[str]) -> str:
    if not {"images", "image_indices", "top_classes", "top_probabilities"} <= arrays.keys():
        return ""
    cards = []
    pairs = list(zip(arrays["images"], arrays["image_indices"], strict=True))
    for place in np.linspace(0, len(pairs) - 1, min(len(pairs), MAX_IMAGES)).round().astype(int):
        pixels, index = pairs[place]
        label = int(arrays["labels"][index])
        classes, probabilities = arrays["top_classes"][index], arrays["top_probabilities"][index]
        bars = "".join(
            f'<li class="{"truth" if one == label else ""}"><span class="name">{escape(names[one])}</span>'
            f'<span class="share">{100 * probability:.1f} %</span>'
            f'<span class="bar"><i style="width:{100 * probability:.1f}%"></i></span></li>'
            for one, probability in zip(classes, probabilities, strict=True)
        )
        kind, verdict, truth = "right", "&#10003; right", ""
        if classes[0] != label:
            kind, verdict = "wrong", "&#10007; wrong"
            truth = f'<div class="true">is: {escape(names[label])}</div>'
        cards.append(
            f'<figure class="card image {kind}">{image_tag(pixels, names[label])}'
            f'<div><div class="verdict">{verdict}</div>{truth}<ol class="bars">{bars}</ol></div></figure>'
        )
    return (
        f"<h3>Test images</h3><p>{len(cards)} of {len(arrays['labels']):,}, evenly spread over the test set, not "
        "picked by result; the model's most probable names, the true one in green.</p>"
        f'<div class="images">{"".join(cards)}</div>'
    )
