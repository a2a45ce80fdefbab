"""Metrics of classification against scikit-learn, on scores with many ties and classes that do not occur."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from openslip.evaluation.metrics import (
    METRICS,
    accuracies,
    average_precision,
    average_precisions,
    best_classes,
    confusion,
    eleven_point_average_precision,
    expected_calibration_error,
    possible_metrics,
    recall_per_class,
    roc_auc,
    roc_auc_one_vs_one,
    roc_auc_one_vs_rest,
    top_k_accuracy,
)


def scores_and_labels(classes: int, samples: int = 203, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores with two decimals for uneven classes, of which each occurs."""
    rng = np.random.default_rng((seed, classes))
    labels = rng.choice(classes, samples, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    labels[:classes] = np.arange(classes)
    scores = rng.normal(size=(samples, classes)) + 1.5 * (labels[:, None] == np.arange(classes))
    return scores.round(2), labels


@pytest.mark.parametrize("classes", [2, 4, 6, 13])
def test_accuracies_are_scikit_learns(classes: int):
    scores, labels = scores_and_labels(classes)
    scores += 1e-4 * np.arange(classes)  # scikit-learn refuses to break ties
    top = best_classes(torch.from_numpy(scores), 5).numpy()
    metrics = accuracies(top, labels, classes)
    predictions = scores.argmax(axis=1)
    expected = {
        "top1": 100 * sklearn.accuracy_score(labels, predictions),
        "mean_per_class": 100 * sklearn.balanced_accuracy_score(labels, predictions),
    }
    if classes >= 5:
        expected["top5"] = 100 * sklearn.top_k_accuracy_score(labels, scores, k=5, labels=np.arange(classes))
        expected["mean_of_top1_top5"] = (expected["top1"] + expected["top5"]) / 2
    assert metrics == pytest.approx(expected, abs=1e-12)
    assert metrics.keys() | {"roc_auc"} >= set(possible_metrics(classes))
    assert np.array_equal(confusion(labels, top[:, 0], classes), sklearn.confusion_matrix(labels, predictions))


def test_of_equal_scores_the_lower_class_ranks_first():
    scores = torch.tensor([[1.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0]])
    assert best_classes(scores, 3).tolist() == [[1, 2, 0], [0, 1, 2]]
    assert top_k_accuracy(best_classes(scores, 4).numpy(), np.array([2, 0]), 1) == 50


def test_mean_per_class_leaves_out_classes_that_do_not_occur():
    labels, predictions = np.array([0, 0, 0, 0, 3]), np.array([0, 0, 0, 1, 3])
    recalls = recall_per_class(labels, predictions, 5)
    assert recalls.tolist()[:1] == [75]
    assert np.isnan(recalls).tolist() == [False, True, True, False, True]
    metrics = accuracies(np.tile(predictions[:, None], 5), labels, 5)
    assert metrics["mean_per_class"] == 87.5
    assert metrics["top1"] == 80


def test_roc_auc_counts_ties_one_half():
    scores, labels = scores_and_labels(2)
    margins = (scores[:, 1] - scores[:, 0]).round(0)
    assert len(np.unique(margins)) < 20, "nearly all are ties"
    assert roc_auc(margins, labels == 1) == pytest.approx(100 * sklearn.roc_auc_score(labels, margins), abs=1e-12)
    assert roc_auc(np.zeros(7), np.arange(7) < 3) == 50
    assert roc_auc(np.array([1.0, 1.0, 0.0]), np.array([True, False, False])) == 75
    with pytest.raises(ValueError, match="samples of both classes"):
        roc_auc(np.zeros(3), np.ones(3, bool))


@pytest.mark.parametrize("classes", [3, 8])
def test_roc_auc_of_several_classes_is_scikit_learns(classes: int):
    scores, labels = scores_and_labels(classes)
    probabilities = torch.from_numpy(scores).softmax(dim=1).numpy()
    for ours, way in ((roc_auc_one_vs_rest, "ovr"), (roc_auc_one_vs_one, "ovo")):
        expected = 100 * sklearn.roc_auc_score(labels, probabilities, multi_class=way)
        assert ours(probabilities, labels) == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_average_precision_is_scikit_learns_with_and_without_ties(decimals: int):
    scores, _ = scores_and_labels(6)
    scores = scores.round(decimals)
    targets = (np.random.default_rng(1).random(scores.shape) < 0.2).astype(np.uint8)
    expected = [100 * sklearn.average_precision_score(*columns) for columns in zip(targets.T, scores.T, strict=True)]
    assert average_precisions(scores, targets) == pytest.approx(expected, abs=1e-11)


def test_a_class_without_positives_has_no_average_precision():
    scores, targets = np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[0, 1], [0, 0]], np.uint8)
    assert average_precisions(scores, targets).tolist() == pytest.approx([math.nan, 50], nan_ok=True)
    assert np.isnan(average_precisions(scores, targets, eleven_point_average_precision)[0])


def naive_eleven_points(scores: list[float], is_positive: list[bool]) -> float:
    """The best precision of any cut of the ranking that finds at least that many tenths of the positives."""
    ranked = [hit for _, hit in sorted(zip(scores, is_positive, strict=True), reverse=True)]
    cuts = [(sum(ranked[:count]), count) for count in range(1, len(ranked) + 1)]
    best = [max(hits / count for hits, count in cuts if 10 * hits >= level * sum(ranked)) for level in range(11)]
    return 100 * sum(best) / 11


@pytest.mark.parametrize("positives", [1, 3, 10, 37])
def test_eleven_point_average_precision_equals_a_loop(positives: int):
    rng = np.random.default_rng(positives)
    scores, is_positive = rng.permutation(80).astype(float), np.arange(80) < positives
    ours = eleven_point_average_precision(scores, is_positive)
    assert ours == pytest.approx(naive_eleven_points(scores.tolist(), is_positive.tolist()), abs=1e-11)
    assert ours >= average_precision(scores, is_positive) - 1e-9


def test_eleven_points_of_a_known_ranking():
    # Positives at places 1 and 3: precision 1 up to a recall of one half, 2/3 beyond.
    scores, is_positive = np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])
    assert eleven_point_average_precision(scores, is_positive) == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)


def test_calibration_error_equals_a_loop_over_bins():
    rng = np.random.default_rng(0)
    probabilities = np.concatenate([rng.random(500), [0.0, 0.2, 1.0]]).astype(np.float32)
    is_right = rng.random(503) < probabilities**2
    expected = 0.0
    for place in range(15):
        inside = (probabilities > place / 15) & (probabilities <= (place + 1) / 15)
        if place == 0:
            inside |= probabilities == 0
        if inside.any():
            distance = abs(is_right[inside].mean() - probabilities[inside].astype(np.float64).mean())
            expected += 100 * inside.mean() * distance
    assert expected_calibration_error(probabilities, is_right) == pytest.approx(expected, abs=1e-9)
    assert expected_calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == 0
    assert expected_calibration_error(np.array([0.9, 0.9]), np.array([False, False])) == pytest.approx(90)


def test_metrics_exist_for_the_numbers_of_classes_that_they_need():
    assert possible_metrics(2) == ["top1", "mean_per_class", "roc_auc"]
    assert possible_metrics(4) == ["top1", "mean_per_class"]
    assert possible_metrics(5) == [name for name in METRICS if name != "roc_auc"]
