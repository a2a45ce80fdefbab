"""Parts of a classification's section: accuracy by class, accuracy by prompt template, calibration."""

from collections.abc import Iterable

import numpy as np

from openslip.evaluation.metrics import expected_calibration_error
from openslip.report.charts import legend
from openslip.report.drawings import reliability
from openslip.report.pieces import escape, percent
from openslip.report.run_files import check

BINS = 15  # number of bins of the reliability diagram: Guo et al. 2017, arXiv:1706.04599, table 1
OPEN_CLASSES = 12  # rows of the table of classes that are always open
MOST_TEMPLATES = 20  # bars; of more templates, the best and the worst are shown


def by_class(labels: np.ndarray, predictions: np.ndarray, names: list[str]) -> str:
    """Build the table of the accuracy of each class, the worst first.

    Args:
        labels: true class of each sample.
        predictions: predicted class of each sample.
        names: name of each class.
    """
    totals = np.bincount(labels, minlength=len(names))
    hits = np.bincount(labels[labels == predictions], minlength=len(names))
    claims = np.bincount(predictions, minlength=len(names))
    occurring = np.flatnonzero(totals)
    shares = hits[occurring] / totals[occurring]
    order = occurring[np.lexsort((occurring, shares))]
    rows = [
        f"<tr><td>{escape(names[place])}</td>"
        f'<td class="number"><span class="meter"><i style="width:{100 * hits[place] / totals[place]:.1f}%"></i></span>'
        f"{percent(100 * float(hits[place] / totals[place]))}</td>"
        f'<td class="number">{hits[place]:,} of {totals[place]:,}</td><td class="number">{claims[place]:,}</td></tr>'
        for place in order
    ]
    mean = percent(100 * float(shares.mean()))
    text = (
        f"<h3>Accuracy by class</h3><p>The worst first; the mean over classes is <b>{mean}</b>. A class that is "
        "predicted far more often than it occurs attracts images of other classes.</p>"
    )
    whole = f"<details><summary>all {len(rows):,} classes</summary>{_classes(rows)}</details>"
    return f"{text}{_classes(rows[:OPEN_CLASSES])}{whole if len(rows) > OPEN_CLASSES else ''}"


def _classes(rows: Iterable[str]) -> str:
    return (
        '<div class="scroll"><table class="plain classes"><thead><tr><th>class</th><th class="number">right</th>'
        '<th class="number">images</th><th class="number">predicted</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def by_template(arrays: dict[str, np.ndarray]) -> str:
    """Build the bars of the accuracy of each prompt template and of their ensemble; empty if this is not known."""
    if not {"template_top1", "templates"} <= arrays.keys():
        return ""
    shares, templates = arrays["template_top1"], [str(template) for template in arrays["templates"]]
    check(shares.shape == (len(templates),) and bool(np.isfinite(shares).all()), "templates and accuracies differ")
    ensemble = 100 * float((arrays["labels"] == arrays["predictions"]).mean())
    order = [int(place) for place in np.argsort(-shares, kind="stable")]
    half = MOST_TEMPLATES // 2
    left_out = len(order) - MOST_TEMPLATES
    shown = order if left_out <= 0 else order[:half] + order[-half:]
    bars = [_bar("all templates together", ensemble, " truth")]
    bars += [_bar(templates[place], float(shares[place]), "") for place in shown]
    if left_out > 0:
        bars.insert(half + 1, f'<li><span class="name">... {left_out} more ...</span></li>')
    return (
        f"<h3>Accuracy by prompt template</h3><p>The ensemble of {len(templates)} templates is right for "
        f"<b>{percent(ensemble)}</b> of the images: <b>{points(ensemble - float(shares.mean()))}</b> compared with the "
        f"mean of single templates, <b>{points(ensemble - float(shares.max()))}</b> compared with the best one.</p>"
        f'<div class="card"><ol class="bars">{"".join(bars)}</ol></div>'
    )


def points(difference: float) -> str:
    """Format a difference of two percentages."""
    return f"{difference:+.1f} points".replace("-", "\N{MINUS SIGN}")


def _bar(name: str, share: float, kind: str) -> str:
    return (
        f'<li class="{kind.strip()}"><span class="name">{escape(name)}</span><span class="share">{share:.1f} %</span>'
        f'<span class="bar"><i style="width:{share:.1f}%"></i></span></li>'
    )


def calibration(arrays: dict[str, np.ndarray]) -> str:
    """Build the reliability diagram of the predictions' probabilities; empty if there are none."""
    if "top_probabilities" not in arrays:
        return ""
    probabilities = arrays["top_probabilities"][:, 0].astype(np.float64)
    is_right = arrays["labels"] == arrays["predictions"]
    check(probabilities.shape == is_right.shape, "probabilities and labels differ in shape")
    check(bool(((probabilities >= 0) & (probabilities <= 1.0001)).all()), "a probability is not from 0 to 1")
    place = np.searchsorted(np.arange(1, BINS) / BINS, probabilities)  # the upper bound belongs to a bin
    counts = np.bincount(place, minlength=BINS)
    right, mean = (np.bincount(place, weights=of, minlength=BINS) for of in (is_right, probabilities))
    error = expected_calibration_error(probabilities, is_right, BINS)
    excess = 100 * float(probabilities.mean() - is_right.mean())
    verdict = f"{'over' if excess > 0 else 'under'}confident by {abs(excess):.1f} points on average"
    drawing = reliability(
        (right / counts.clip(1)).tolist(),
        (mean / counts.clip(1)).tolist(),
        counts.tolist(),
        f"Reliability diagram: expected calibration error {error:.1f} %",
    )
    names = legend([("share that is right", 0), ("mean probability", 1)], "equal")
    return (
        f"<h3>Calibration</h3><p>Expected calibration error <b>{percent(error)}</b>: the mean distance between the "
        f"probability of a prediction and how often such predictions are right; 0 is best. The model is {verdict}. "
        "Blue bars that end below the orange marks mean that it is too sure. Grey: how many predictions have such a "
        f'probability.</p><div class="charts"><figure class="card reliability"><figcaption>Right, %</figcaption>{names}'
        f"{drawing}</figure></div>"
    )
