"""Diagnosis of a zero-shot classification: what the prompt ensemble gains, and whether probabilities can be trusted."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from openslip.evaluation.metrics import expected_calibration_error
from openslip.inference.bundle import Bundle, evaluating


class Diagnosis(NamedTuple):
    """Further metrics and arrays of a classification."""

    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]


def diagnosis(
    bundle: Bundle,
    images: Float[Tensor, "images embed"],
    labels: Int64[Tensor, " images"],
    prompts: Float[Tensor, "templates classes embed"],
    probabilities: Float32[np.ndarray, " images"],
    is_right: Bool[np.ndarray, " images"],
    batch_size: int,
) -> Diagnosis:
    """Return the calibration error, and with several templates what their ensemble gains.

    Metrics: `calibration_error_percent`; `ensemble_gain` and `ensemble_gain_over_best`, the top-1 accuracy of the
    ensemble less the mean accuracy of single templates and less that of the best one, in points. Arrays:
    `template_top1`.

    Args:
        bundle: the model.
        images: unit-length features of the images.
        labels: true classes.
        prompts: unit-length features of all prompts.
        probabilities: probability of each image's predicted class.
        is_right: whether the ensemble predicts the true class.
        batch_size: images that are compared with all prompts at a time.
    """
    metrics = {"calibration_error_percent": expected_calibration_error(probabilities, is_right)}
    if len(prompts) == 1:
        return Diagnosis(metrics, {})
    with evaluating(bundle.model, bundle.device):
        of_template = template_accuracies(images, labels, prompts, batch_size)
    top1 = 100 * int(is_right.sum()) / len(is_right)
    metrics["ensemble_gain"] = top1 - float(of_template.mean())
    metrics["ensemble_gain_over_best"] = top1 - float(of_template.max())
    return Diagnosis(metrics, {"template_top1": of_template})


def template_accuracies(
    images: Float[Tensor, "images embed"],
    labels: Int64[Tensor, " images"],
    prompts: Float[Tensor, "templates classes embed"],
    batch_size: int,
) -> Float64[np.ndarray, " templates"]:
    """Return the top-1 accuracy of each template alone, in per cent; among equally similar classes, the first is taken.

    Args:
        images: unit-length features of the images.
        labels: true classes.
        prompts: unit-length features of all prompts.
        batch_size: images that are compared with all prompts at a time.
    """
    hits = torch.zeros(len(prompts), dtype=torch.int64, device=images.device)
    numbers = torch.arange(prompts.shape[1], device=images.device)
    prompts = F.normalize(prompts, dim=-1)  # the means of several names are shorter
    for rows, targets in zip(images.split(batch_size), labels.to(images.device).split(batch_size), strict=True):
        is_before = numbers < targets[:, None]  # [batch, classes]
        for template, classes in enumerate(prompts):
            cosines = rows @ classes.T  # [batch, classes]
            right = cosines.gather(1, targets[:, None])
            # Without a sort, which would take most of the time: no class is better, and no earlier one equally good.
            is_beaten = (cosines > right) | ((cosines == right) & is_before)
            hits[template] += (~is_beaten.any(dim=1)).sum()
    return 100 * hits.cpu().double().numpy() / len(images)
