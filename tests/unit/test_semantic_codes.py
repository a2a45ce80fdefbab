"""Nearest code and DAP against scikit-learn's regressions and loops."""

from typing import Any

import numpy as np
import pytest
from attribute_models import VALUES, codes_and_map_on_this_rank, semantic_codes, sources
from evaluation_models import bundle, dual_encoder, image_encoder
from frozen_models import labels, named, tower_features
from ranks import Ranks
from scikit import LogisticRegression, Ridge

from openslip.errors import UserError

BITS = [(name, value) for name, values in VALUES.items() for value in dict.fromkeys(values)]
CODES = [[float(VALUES[name][label] == value) for name, value in BITS] for label in range(7)]


def nearest_codes(train: np.ndarray, of_train: np.ndarray, images: np.ndarray) -> list[int]:
    """Palatucci et al. 2009: the class among 5 and 6 whose code is nearest to the predicted one."""
    predicted = Ridge(alpha=0.7).fit(train, np.array(CODES)[of_train]).predict(images)
    return [min((5, 6), key=lambda label, row=row: float(((row - CODES[label]) ** 2).sum())) for row in predicted]


def dap(train: np.ndarray, of_train: np.ndarray, images: np.ndarray) -> list[int]:
    """Lampert et al. 2009: the product of posteriors over priors, with the classifier of each bit fitted alone."""
    products = np.ones((len(images), 7))
    for place in range(len(BITS)):
        bit = np.array([CODES[label][place] for label in of_train])
        posterior = LogisticRegression(C=0.5, tol=1e-9, max_iter=5000).fit(train, bit).predict_proba(images)[:, 1]
        prior = sum(CODES[label][place] for label in range(5)) / 5
        for label in range(7):
            present = CODES[label][place] == 1
            products[:, label] *= posterior / prior if present else (1 - posterior) / (1 - prior)
    return [5 if row[5] >= row[6] else 6 for row in products]


def test_both_answers_equal_scikit_learns_regressions_and_loops():
    train, unseen = sources()
    evaluation = semantic_codes(train, unseen)
    metrics = evaluation.run(bundle(image_encoder().train()))
    features, images = (tower_features(image_encoder(), source) for source in (train, unseen))
    truth = labels(unseen)
    expected = {"predictions": nearest_codes, "predictions_dap": dap}
    for name, predict in expected.items():
        predicted = predict(features, labels(train), images)
        assert evaluation.arrays[name].tolist() == predicted
        assert set(predicted) == {5, 6}  # neither class takes all images
        metric = {"predictions": "top1_nearest_code", "predictions_dap": "top1_dap"}[name]
        assert metrics[metric] == pytest.approx(100 * np.mean(np.array(predicted) == truth))
    assert (metrics["chance"], metrics["num_unseen_classes"], metrics["num_samples"]) == (50, 2, 21)
    assert evaluation.headline(metrics).startswith("codes: nearest code ")
    assert evaluation.arrays["attribute_values"].tolist() == list(VALUES.values())


def test_two_ranks_equal_one_process(two_ranks: Ranks):
    alone = codes_and_map_on_this_rank()
    for rank in two_ranks(codes_and_map_on_this_rank):
        for (metrics, arrays), (expected, expected_arrays) in zip(rank, alone, strict=True):
            assert metrics == expected
            for name, array in expected_arrays.items():
                np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0.0}, r"ridge=0\.0: semantic codes expected a number above 0"),
        ({"c": -1.0}, r"c=-1\.0: semantic codes expected a number above 0"),
        ({"attributes": {}}, "attributes: semantic codes expected one or more"),
        ({"attributes": {"a": ["x", "y"], "b": ["x"]}}, "attributes: semantic codes expected one or more, with one"),
        ({"attributes": {"a": ["x", "y"]}}, "label 6 has no attributes; they are of 2 classes"),
        ({"attributes": {"a": [*"xyxyxzx"]}}, "all or no training images have a 'z', so it cannot be learnt"),
        ({"attributes": {"a": [*"xyxyxyy"]}}, "two unseen classes have the same attributes"),
        ({"features": "text"}, "features=text: semantic codes expected tower"),
    ],
)
def test_codes_that_mean_nothing_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        semantic_codes(*sources(), **options).run(bundle(dual_encoder()))


def test_a_class_with_training_images_is_not_unseen():
    train, _ = sources()
    with pytest.raises(UserError, match="unseen has images of class 3, and so has train: expected other classes"):
        semantic_codes(train, named(9, 3, [3, 6])).run(bundle(dual_encoder()))
