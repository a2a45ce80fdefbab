"""Rows of a table of predictions."""

import numpy as np

from openslip.training.logging.predictions import ROWS, prediction_table


def test_names_and_probabilities_stand_beside_the_sample():
    arrays = {
        "labels": np.array([0, 1, 1]),
        "predictions": np.array([0, 0, 1]),
        "classnames": np.array(["ant", "bee"]),
        "top_probabilities": np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]),
    }
    columns, rows = prediction_table(arrays)
    assert columns == ["sample", "label", "prediction", "right", "probability"]
    assert rows == [[0, "ant", "ant", True, 0.9], [1, "bee", "ant", False, 0.6], [2, "bee", "bee", True, 0.7]]


def test_numbers_stand_for_classes_without_names():
    columns, rows = prediction_table({"labels": np.array([3]), "predictions": np.array([5])})
    assert (columns, rows) == (["sample", "label", "prediction", "right"], [[0, 3, 5, False]])


def test_many_samples_are_thinned_out_evenly():
    arrays = {"labels": np.arange(10_000), "predictions": np.arange(10_000)}
    samples = [row[0] for row in prediction_table(arrays)[1]]
    assert len(samples) == ROWS
    assert (samples[0], samples[-1]) == (0, 9_999)
    assert set(np.diff(samples)) <= {50, 51}
