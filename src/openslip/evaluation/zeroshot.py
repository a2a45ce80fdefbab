"""Zero-shot classification by prompt ensembles. Radford et al. 2021, arXiv:2103.00020, section 3.1.

The protocol is that of published SLIP: classes are ranked by cosine similarity in float32; of equally similar
classes, the one with the lower label ranks first. After `run`, `ZeroShot.arrays` holds the following arrays. N is the
number of samples (in the source's order), C of classes, T of templates, P of images and A of attributes; K = min(5, C).

| name | dtype, shape | content |
|---|---|---|
| `classnames` | str [C] | candidates in label order |
| `templates` | str [T] | prompts, with `{}` |
| `labels` | int64 [N] | true class |
| `predictions` | int64 [N] | most similar class (= `top_classes[:, 0]`) |
| `top_classes` | int64 [N, K] | most similar classes, most similar first |
| `top_probabilities` | float32 [N, K] | softmax(exp(logit_scale) * cosine) over all C classes, for `top_classes` |
| `template_top1` | float64 [T] | top-1 accuracy of each template alone, in per cent; absent with one template |
| `images` | uint8 [P, 3, H, W] | images evenly spread over the source, after resize and centre crop |
| `image_indices` | int64 [P] | index of each of the `images` among the N samples |
| `attribute_names` | str [A] | names of the `attributes`, if there are any |
| `attribute_values` | str [A, C] | every class's value of each attribute, if there are any |
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openslip.data.source import Source
from openslip.distributed import notice_once, on_every_rank
from openslip.errors import UserError
from openslip.evaluation.class_names import class_names
from openslip.evaluation.diagnosis import diagnosis
from openslip.evaluation.evaluation import Evaluation, classification_line
from openslip.evaluation.features import text_features
from openslip.evaluation.image_features import joint_features
from openslip.evaluation.metrics import accuracies, best_classes, per_cent, possible_metrics, roc_auc
from openslip.evaluation.split_size import samples_note
from openslip.inference.bundle import Bundle, evaluating
from openslip.inference.prompts import ensemble, template_features, texts_of

NUM_IMAGES = 16


class ZeroShot(Evaluation):
    """Zero-shot accuracy, in per cent: each image is classified as the class whose prompts are most similar to it.

    Metrics: `top1`, `mean_per_class` (mean over the occurring classes of the share of their images that is right),
    `top5` and `mean_of_top1_top5` (with at least 5 classes), `roc_auc` (of 2 classes, if both occur; the score is the
    second class's cosine minus the first's), `chance` (of top1), `num_samples`, those of
    `openslip.evaluation.diagnosis`, and per attribute `top1_<attribute>`: the share of images for which the predicted
    class has the right value.

    Args:
        title: name of the evaluation in its headline.
        source: images with labels.
        classnames: the name of every label: a list, a text file, the name of a published table (`imagenet`, `food101`,
            ...), or None for the source's own class names. If the source has class folders, the names are matched with
            them; those of a table must agree. ImageNet's 1000 names are matched by the folders' WordNet ids, so that a
            subset of ImageNet is classified among the subset's classes only.
        templates: prompts, each with `{}` for the class name: a list, a text file, or the name of published templates
            (`imagenet7`, `imagenet80`, `food101`, ...).
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.
        attributes: by name of the attribute, its value for every class, in the order of `classnames`.
        underscores: `space` reads `_` in class names as a space, `keep` leaves it.
        expected_samples: number of samples of the published split, or a list of them if several splits are published.
            Fewer samples are noted beside the metrics; more are an error, because the split is another one.
        metric: the metric by which the dataset is reported, one of those above; the headline shows it.

    Raises:
        UserError: the constructor gets invalid names, templates or attributes, names that do not fit the class
            folders, or a metric that does not exist for so many classes; `run` meets a label without a name or a sample
            without a label, the model has no text tower, or `roc_auc` is asked for and only one class occurs.
    """

    def __init__(
        self,
        *,
        title: str,
        source: Source,
        classnames: Iterable[Any] | str | Path | None,
        templates: Iterable[Any] | str | Path,
        batch_size: int,
        num_workers: int,
        attributes: dict[str, list[str]] | None = None,
        underscores: str = "space",
        expected_samples: int | list[int] | None = None,
        metric: str = "top1",
    ) -> None:
        classes = class_names(
            classnames, source.classes, underscores, labels_are_sorted_names=source.labels_are_sorted_names
        )
        if len(source) == 0:
            raise UserError("zero-shot: the source has no samples")
        for name, values in (attributes or {}).items():
            if len(values) != classes.num_given:
                raise UserError(
                    f"attribute {name!r} has {len(values)} values for {classes.num_given} classes: expected one per "
                    "class"
                )
        if metric not in (possible := possible_metrics(len(classes.names))):
            raise UserError(f"metric={metric}: expected {', '.join(possible)} for {len(classes.names)} classes")
        self.title = title
        self.headline_metric = metric
        self.source = source
        self.classnames = classes.names
        self.prompted = classes.prompted
        self.templates = texts_of(templates, "templates")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.attributes = {
            name: [values[place] for place in classes.places] for name, values in (attributes or {}).items()
        }
        if len(classes.names) < classes.num_known:
            self.notes = {"classes": f"{len(classes.names)} of {classes.num_known}"}
        elif samples := samples_note(title, len(source), expected_samples):
            self.notes = {"samples": samples}
        notice_once(*(f"{title}: {line}" for line in classes.notices))

    def headline(self, metrics: dict[str, float]) -> str:
        line = classification_line(self.title, metrics, self.headline_metric)
        return ", ".join([line, *(f"{self.notes[key]} {key}" for key in ("classes", "samples") if key in self.notes)])

    def run(self, bundle: Bundle) -> dict[str, float]:
        bundle.need_tokenizer()
        prompts = template_features(lambda texts: text_features(bundle, texts), self.prompted, self.templates)
        images, of_image = joint_features(bundle, self.source, batch_size=self.batch_size, num_workers=self.num_workers)
        self.check_labels(of_image)
        top_classes, top_probabilities, margins = self.classify(bundle, images, ensemble(prompts))
        labels = of_image.cpu().numpy()
        predictions = top_classes[:, 0]
        if (num_occurring := len(np.unique(labels))) < len(self.classnames):
            self.notes = {**self.notes, "classes with samples": f"{num_occurring} of {len(self.classnames)}"}
        self.arrays = {
            "classnames": np.array(self.classnames),
            "templates": np.array(self.templates),
            "labels": labels,
            "predictions": predictions,
            "top_classes": top_classes,
            "top_probabilities": top_probabilities,
            **on_every_rank(lambda: self.images(bundle)),
        }
        metrics = accuracies(top_classes, labels, len(self.classnames))
        if "roc_auc" in possible_metrics(len(self.classnames)):
            metrics |= self.roc_auc(margins, labels)
        metrics |= {"chance": 100 / len(self.classnames), "num_samples": float(len(labels))}
        diagnosed = diagnosis(
            bundle, images, of_image, prompts, top_probabilities[:, 0], predictions == labels, self.batch_size
        )
        self.arrays |= diagnosed.arrays
        metrics |= diagnosed.metrics
        if self.attributes:
            values = np.array(list(self.attributes.values()))
            self.arrays |= {"attribute_names": np.array(list(self.attributes)), "attribute_values": values}
            for name, of_class in zip(self.attributes, values, strict=True):
                metrics[f"top1_{name}"] = per_cent(of_class[predictions] == of_class[labels])
        return metrics

    def classify(self, bundle: Bundle, features: Tensor, classes: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classify all samples, a batch at a time, so that memory does not grow by a row of cosines per sample.

        Returns:
            The most similar classes of all samples, the probabilities of these classes, and the last class's cosine
            minus the first's.
        """
        num_top = min(5, len(classes))
        top, probabilities, margins = [], [], []
        with evaluating(bundle.model, bundle.device):
            for images in features.split(self.batch_size):
                cosines = images @ classes.T  # [B, C]
                best = best_classes(cosines, num_top)
                top.append(best)
                margins.append(cosines[:, -1] - cosines[:, 0])
                probabilities.append((cosines * bundle.scale()).softmax(dim=1).gather(1, best))
        top_classes, top_probabilities, margin = (
            torch.cat(rows).cpu().numpy() for rows in (top, probabilities, margins)
        )
        return top_classes, top_probabilities, margin

    def roc_auc(self, margins: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the metric `roc_auc`, or none if only one of the two classes occurs."""
        if len(np.unique(labels)) == 2:
            return {"roc_auc": roc_auc(margins, labels == 1)}
        if self.headline_metric == "roc_auc":
            raise UserError(
                f"metric=roc_auc: every sample of {self.title} has label {labels[0]}; expected samples of both classes"
            )
        return {}

    def check_labels(self, label: Tensor) -> None:
        highest = int(label.max())
        if highest >= len(self.classnames):
            raise UserError(
                f"label {highest} is outside the {len(self.classnames)} class names "
                f"(0 to {len(self.classnames) - 1}): give classnames as many names as the source has classes"
            )

    def images(self, bundle: Bundle) -> dict[str, np.ndarray]:
        """Return the arrays `images` and `image_indices`: sample images for the report, resized and cropped."""
        count = min(NUM_IMAGES, len(self.source))
        indices = np.arange(count) * len(self.source) // count
        samples = [self.source[int(index)] for index in indices]
        images = torch.stack([bundle.transform.read(sample.image, sample.key) for sample in samples])
        return {"images": bundle.transform.undo(images), "image_indices": indices}
