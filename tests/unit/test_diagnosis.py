"""What a classification's diagnosis says, against loops and against classifications by a single template."""

import numpy as np
import pytest
import torch
from evaluation_models import CLASSNAMES, TEMPLATES, Pictures, bundle, dual_encoder, zero_shot

from openslip.evaluation.diagnosis import template_accuracies
from openslip.evaluation.zeroshot import ZeroShot


def classify(templates: list[str], count: int = 40) -> ZeroShot:
    return ZeroShot(
        title="t", source=Pictures(count), classnames=CLASSNAMES, templates=templates, batch_size=4, num_workers=0
    )


def test_the_accuracy_of_each_template_is_that_of_a_classification_by_it_alone():
    evaluation = classify(TEMPLATES)
    metrics = evaluation.run(bundle(dual_encoder()))
    single = [classify([template]) for template in TEMPLATES]
    alone = [one.run(bundle(dual_encoder()))["top1"] for one in single]
    assert evaluation.arrays["template_top1"].tolist() == pytest.approx(alone)
    assert len({*alone}) > 1, "equal accuracies would tell little"
    assert metrics["ensemble_gain"] == pytest.approx(metrics["top1"] - sum(alone) / len(alone))
    assert metrics["ensemble_gain_over_best"] == pytest.approx(metrics["top1"] - max(alone))
    for one in single:
        assert "template_top1" not in one.arrays


def test_one_template_has_no_ensemble_to_gain_from():
    metrics = classify(["a {}."]).run(bundle(dual_encoder()))
    assert not [name for name in metrics if "ensemble" in name]
    assert "calibration_error_percent" in metrics


def test_calibration_error_equals_a_loop_over_bins():
    evaluation = zero_shot(Pictures(40))
    metrics = evaluation.run(bundle(dual_encoder()))
    probabilities = evaluation.arrays["top_probabilities"][:, 0].astype(float).tolist()
    right = (evaluation.arrays["labels"] == evaluation.arrays["predictions"]).tolist()
    error = 0.0
    for number in range(15):
        of_bin = [i for i, p in enumerate(probabilities) if number / 15 < p <= (number + 1) / 15]
        if of_bin:
            accuracy = sum(right[i] for i in of_bin) / len(of_bin)
            confidence = sum(probabilities[i] for i in of_bin) / len(of_bin)
            error += len(of_bin) / 40 * abs(accuracy - confidence)
    assert metrics["calibration_error_percent"] == pytest.approx(100 * error)
    assert error > 0.01


def test_of_equally_similar_classes_the_first_counts():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    prompts = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    labels = torch.tensor([0, 1, 2])
    np.testing.assert_allclose(template_accuracies(images, labels, prompts, 2), [200 / 3, 100 / 3])
