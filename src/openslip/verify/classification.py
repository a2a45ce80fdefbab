"""Our metrics of recorded logits, scores and features: top-k, mean per class, ROC-AUC, average precision, prompts."""

import numpy as np
import torch
import torch.nn.functional as F

from openslip.evaluation.metrics import (
    accuracies,
    average_precisions,
    best_classes,
    confusion,
    mean_average_precision,
    per_cent,
    recall_per_class,
    roc_auc,
    roc_auc_one_vs_one,
    roc_auc_one_vs_rest,
)
from openslip.inference.prompts import class_embeddings
from openslip.verify.recorded_figures import FIGURE, FLOAT32_ARRAY, Computed, Ours, Section

# Our metric of each recorded figure, and the recorded unit in per cent.
ACCURACIES = {
    "top1": ("top1", 100),
    "top5": ("top5", 100),
    "acc1": ("top1", 100),
    "acc5": ("top5", 100),
    "mean_per_class_recall": ("mean_per_class", 100),
    "slip_top1_percent": ("top1", 1),
    "slip_top5_percent": ("top5", 1),
    "slip_mean_per_class_percent": ("mean_per_class", 1),
    "slip_mean_of_top1_top5_percent": ("mean_of_top1_top5", 1),
}
AREAS = {"roc_auc_ovr_macro_softmax": roc_auc_one_vs_rest, "roc_auc_ovo_macro_softmax": roc_auc_one_vs_one}


def accuracy_figures(logits: torch.Tensor, labels: np.ndarray) -> dict[str, Ours]:
    """Return the figures that follow from the ranking of the classes."""
    num_classes = logits.shape[1]
    metrics = accuracies(best_classes(logits, 5).cpu().numpy(), labels, num_classes)
    return {name: Ours(metrics[ours] / unit) for name, (ours, unit) in ACCURACIES.items() if ours in metrics}


def classification(section: Section) -> Computed:
    """Compute the metrics of a classification."""
    logits, labels = section.tensor("logits"), section.arrays["targets"]
    predictions, num_classes = best_classes(logits, 1)[:, 0].cpu().numpy(), logits.shape[1]
    probabilities = logits.double().softmax(dim=1).cpu().numpy()
    figures = accuracy_figures(logits, labels)
    for name, area in AREAS.items():
        if name in section.figures:  # they exist only if every class occurs
            figures[name] = Ours(area(probabilities, labels) / 100)
    arrays = {
        "confusion": Ours(confusion(labels, predictions, num_classes), 0.0),
        "recall_per_class": Ours(recall_per_class(labels, predictions, num_classes) / 100, FIGURE),
    }
    return Computed(figures, arrays)


def binary(section: Section) -> Computed:
    """Compute the metrics of two classes."""
    logits, labels = section.tensor("binary_logits"), section.arrays["binary_targets"]
    margins = (logits[:, 1] - logits[:, 0]).cpu().numpy()
    predictions = best_classes(logits, 1)[:, 0].cpu().numpy()
    return Computed(
        {
            "slip_roc_auc_percent": Ours(roc_auc(margins, labels == 1)),
            "distinct_scores": Ours(float(len(np.unique(margins))), 0.0),
            "top1": Ours(per_cent(predictions == labels) / 100),
        }
    )


def multilabel(section: Section) -> Computed:
    """Compute average precisions of labels that do not exclude each other."""
    of_class = average_precisions(section.arrays["multilabel_scores"], section.arrays["multilabel_targets"]) / 100
    of_class = np.nan_to_num(of_class)  # both libraries count a class without positives as 0; our mean leaves it out
    mean = Ours(mean_average_precision(of_class))
    return Computed({"mean_average_precision": mean, "sklearn_macro": mean}, {"multilabel_ap": Ours(of_class, FIGURE)})


def prompts(section: Section) -> Computed:
    """Build a classifier of recorded prompts, and compute its accuracy."""
    texts = F.normalize(section.tensor("prompt_text_features"), dim=-1)  # [C, P, E]
    names, templates = ([str(place) for place in range(count)] for count in texts.shape[:2])

    def encode_text(prompts: list[str]) -> torch.Tensor:
        return torch.stack([texts[tuple(map(int, prompt.split("/")))] for prompt in prompts])

    classes = class_embeddings(encode_text, names, [f"{{}}/{template}" for template in templates])
    logits = 100 * F.normalize(section.tensor("prompt_image_features"), dim=-1) @ classes.T
    arrays = {"prompt_classifier": classes.T, "prompt_logits": logits}
    return Computed(
        accuracy_figures(logits, section.arrays["targets"]),
        {name: Ours(array.cpu().numpy(), FLOAT32_ARRAY) for name, array in arrays.items()},
    )
