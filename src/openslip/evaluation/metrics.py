"""Metrics of classification, computed from labels and scores. Every metric is in per cent.

Counts are added as integers, so that a metric does not depend on the order of the samples, and every rank, which has
all of them, gets the same number.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer, Shaped
from torch import Tensor

MIN_TOP5 = 5  # classes from which on top-5 accuracy is a metric; clip_benchmark gives none below either

# How a classification's metric is called in a sentence, and its value for a guess as a multiple of top-1's.
METRICS = {
    "top1": ("top-1", 1),
    "top5": ("top-5", 5),
    "mean_per_class": ("mean per class", 1),
    "mean_of_top1_top5": ("mean of top-1 and top-5", 3),
    "roc_auc": ("ROC-AUC", 1),  # 50 %, as top-1's, because it is of two classes only
}


def possible_metrics(num_classes: int) -> list[str]:
    """List the names in `METRICS` that a classification among so many classes has."""
    needs = {"top5": num_classes >= MIN_TOP5, "mean_of_top1_top5": num_classes >= MIN_TOP5, "roc_auc": num_classes == 2}
    return [name for name in METRICS if needs.get(name, True)]


def accuracies(
    top_classes: Int64[np.ndarray, "samples k"], labels: Int64[np.ndarray, " samples"], num_classes: int
) -> dict[str, float]:
    """Return the metrics of `METRICS` that follow from ranked classes: all except `roc_auc`.

    Args:
        top_classes: best classes of each sample, best first; at least 5 of them if there are 5 classes.
        labels: true classes.
        num_classes: number of classes.
    """
    metrics = {"top1": top_k_accuracy(top_classes, labels, 1)}
    if num_classes >= MIN_TOP5:
        metrics["top5"] = top_k_accuracy(top_classes, labels, 5)
    metrics["mean_per_class"] = mean_per_class_recall(labels, top_classes[:, 0], num_classes)
    if num_classes >= MIN_TOP5:
        metrics["mean_of_top1_top5"] = (metrics["top1"] + metrics["top5"]) / 2  # SLIP's eval_zeroshot.py, for Kinetics
    return metrics


def best_classes(scores: Float[Tensor, "samples classes"], k: int) -> Int64[Tensor, "samples k"]:
    """Return the k classes of highest score, best first; of equal scores, the one of the lower class ranks first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


def top_k_accuracy(top_classes: Int64[np.ndarray, "samples k"], labels: Int64[np.ndarray, " samples"], k: int) -> float:
    """Return the share of samples whose true class is among the first k of `top_classes`."""
    return per_cent((top_classes[:, :k] == labels[:, None]).any(axis=1))


def per_cent(right: Bool[np.ndarray, " samples"]) -> float:
    """Return the share of true values."""
    return 100 * int(right.sum()) / len(right)


def confusion(
    labels: Int64[np.ndarray, " samples"], predictions: Int64[np.ndarray, " samples"], num_classes: int
) -> Int64[np.ndarray, "classes classes"]:
    """Count the samples of each true class (row) and predicted class (column)."""
    pairs = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def recall_per_class(
    labels: Int64[np.ndarray, " samples"], predictions: Int64[np.ndarray, " samples"], num_classes: int
) -> Float64[np.ndarray, " classes"]:
    """Return for each class the share of its samples that are predicted as it; NaN for a class without samples."""
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[predictions == labels], minlength=num_classes)
    return np.where(counts > 0, 100 * right / np.maximum(counts, 1), np.nan)


def mean_per_class_recall(
    labels: Int64[np.ndarray, " samples"], predictions: Int64[np.ndarray, " samples"], num_classes: int
) -> float:
    """Return the mean of `recall_per_class` over the classes that occur.

    This is SLIP's `mean_per_class` (eval_zeroshot.py) and scikit-learn's `balanced_accuracy_score`.
    """
    return float(np.nanmean(recall_per_class(labels, predictions, num_classes)))


def roc_auc(scores: Float[np.ndarray, " samples"], is_positive: Bool[np.ndarray, " samples"]) -> float:
    """Return the share of pairs of a positive and a negative in which the positive scores higher; ties count one half.

    This is the area under the ROC curve: Hanley and McNeil 1982, Radiology 143, 29-36. SLIP's score of two classes is
    the second class's logit minus the first's (eval_zeroshot.py), not the second's alone.

    Raises:
        ValueError: there are no positives or no negatives.
    """
    num_positive = int(is_positive.sum())
    num_pairs = num_positive * (len(is_positive) - num_positive)
    if num_pairs == 0:
        raise ValueError("roc_auc needs samples of both classes")
    hits, counts = _by_score(scores, is_positive)
    misses = counts - hits
    lower = misses[::-1].cumsum()[::-1] - misses
    return 100 * int((hits * (2 * lower + misses)).sum()) / (2 * num_pairs)


def roc_auc_one_vs_rest(scores: Float[np.ndarray, "samples classes"], labels: Int64[np.ndarray, " samples"]) -> float:
    """Return the unweighted mean over classes of each class's ROC-AUC against all others.

    Scikit-learn's `roc_auc_score` with `multi_class="ovr"`.

    Raises:
        ValueError: a class has no samples.
    """
    return float(np.mean([roc_auc(column, labels == place) for place, column in enumerate(scores.T)]))


def roc_auc_one_vs_one(scores: Float[np.ndarray, "samples classes"], labels: Int64[np.ndarray, " samples"]) -> float:
    """Return the unweighted mean over pairs of classes of the ROC-AUC between them.

    That of a pair is the mean of two: samples of both classes are ranked by the score of the one, then of the other.
    Hand and Till 2001, Machine Learning 45, 171-186, equation 7; scikit-learn's `multi_class="ovo"`.

    Raises:
        ValueError: a class has no samples.
    """
    areas = [
        roc_auc(scores[rows, first], labels[rows] == first)
        for first in range(scores.shape[1])
        for second in range(scores.shape[1])
        if first != second
        for rows in [(labels == first) | (labels == second)]
    ]
    return float(np.mean(areas))


def average_precision(scores: Float[np.ndarray, " samples"], is_positive: Bool[np.ndarray, " samples"]) -> float:
    """Return the mean over positives of the precision at the positive's score; NaN if there are no positives.

    Precision at a score is the share of positives among the samples that score at least as high. This is
    scikit-learn's `average_precision_score`, without interpolation.
    """
    hits, counts = _by_score(scores, is_positive)
    if not is_positive.any():
        return np.nan
    return 100 * float((hits * hits.cumsum() / counts.cumsum()).sum()) / int(is_positive.sum())


def eleven_point_average_precision(
    scores: Float[np.ndarray, " samples"], is_positive: Bool[np.ndarray, " samples"]
) -> float:
    """Return the mean of the highest precision at a recall of at least 0, 0.1, ..., 1; NaN without positives.

    Everingham et al. 2010, "The Pascal Visual Object Classes Challenge", section 4.2: the metric of VOC 2007. Radford
    et al. 2021, arXiv:2103.00020, use it for VOC2007 (remembered; not verified against the paper).
    """
    hits, counts = _by_score(scores, is_positive)
    if not is_positive.any():
        return np.nan
    precision, recalled = hits.cumsum() / counts.cumsum(), hits.cumsum()
    # In integers, because recall 3/10 as a float is less than the float 3 * 0.1.
    return 100 * float(np.mean([precision[10 * recalled >= level * recalled[-1]].max() for level in range(11)]))


def average_precisions(
    scores: Float[np.ndarray, "samples classes"],
    targets: Integer[np.ndarray, "samples classes"],
    of: Callable[[np.ndarray, np.ndarray], float] = average_precision,
) -> Float64[np.ndarray, " classes"]:
    """Return the average precision of each class; NaN for a class without positives.

    Args:
        scores: score of each class for each sample.
        targets: 1 where a sample shows the class, else 0.
        of: `average_precision` or `eleven_point_average_precision`.
    """
    return np.array([of(column, target == 1) for column, target in zip(scores.T, targets.T, strict=True)])


def mean_average_precision(of_class: Float64[np.ndarray, " classes"]) -> float:
    """Return the mean of average precisions over the classes that have positives (the others are NaN)."""
    return float(np.nanmean(of_class))


def expected_calibration_error(
    probabilities_top: Float[np.ndarray, " samples"], is_right: Bool[np.ndarray, " samples"], bins: int = 15
) -> float:
    """Return the mean over samples of the distance between accuracy and mean probability in the sample's bin.

    Guo et al. 2017, arXiv:1706.04599, equation 3, with their 15 bins of equal width; the upper bound belongs to a bin.

    Args:
        probabilities_top: probability of each sample's predicted class, from 0 to 1.
        is_right: whether that class is the true one.
        bins: number of bins.
    """
    bounds = np.arange(1, bins) / bins
    excess = np.bincount(
        np.searchsorted(bounds, probabilities_top), weights=is_right - probabilities_top.astype(np.float64)
    )
    return 100 * float(np.abs(excess).sum()) / len(is_right)


def _by_score(
    scores: Shaped[np.ndarray, " samples"], is_positive: Bool[np.ndarray, " samples"]
) -> tuple[Int64[np.ndarray, " distinct"], Int64[np.ndarray, " distinct"]]:
    """Count the positives, and all samples, of each distinct score, from the highest."""
    distinct, place = np.unique(scores, return_inverse=True)
    hits, counts = (np.bincount(places, minlength=len(distinct)) for places in (place[is_positive], place))
    return hits[::-1], counts[::-1]
