"""Zero-shot classification of images that show several classes. Radford et al. 2021, arXiv:2103.00020, section 3.1.

Each class ranks all images by their cosine similarity with its prompts; average precision tells how far up the images
are that show the class. After `run`, `MultiLabel.arrays` holds the following arrays. N is the number of images, in the
source's order, C of classes and T of templates.

| name | dtype, shape | content |
|---|---|---|
| `classnames` | str [C] | classes in label order |
| `templates` | str [T] | prompts, with `{}` |
| `label_vectors` | uint8 [N, C] | 1 where an image shows a class |
| `cosines` | float32 [N, C] | similarity of image and class |
| `average_precisions` | float64 [C] | in per cent; NaN for a class that no image shows |
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openslip.data.source import Source
from openslip.distributed import notice_once
from openslip.errors import UserError
from openslip.evaluation.class_names import class_names
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.features import text_features
from openslip.evaluation.image_features import joint_features
from openslip.evaluation.metrics import average_precisions, eleven_point_average_precision, mean_average_precision
from openslip.evaluation.split_size import samples_note
from openslip.inference.bundle import Bundle, evaluating
from openslip.inference.prompts import ensemble, template_features, texts_of


class MultiLabel(Evaluation):
    """Zero-shot mean average precision (mAP), in per cent, of images that show any number of classes.

    Metrics: `mean_average_precision`, `mean_average_precision_11_point` (that of VOC 2007), `chance` (mean share of
    images that show a class, to which random scores lead), `num_samples`. Classes that no image shows are left out.

    Args:
        title: name of the evaluation in its headline.
        source: images with `label_vectors`.
        classnames: the name of every class, as in `ZeroShot`.
        templates: prompts, as in `ZeroShot`.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.
        underscores: `space` reads `_` in class names as a space, `keep` leaves it.
        expected_samples: number of samples of the published split, as in `ZeroShot`.

    Raises:
        UserError: the constructor gets invalid names or templates, or a source without label vectors, with vectors
            that do not fit the names, or of another split; or the model has no text tower.
    """

    headline_metric = "mean_average_precision"

    def __init__(
        self,
        *,
        title: str,
        source: Source,
        classnames: Iterable[Any] | str | Path | None,
        templates: Iterable[Any] | str | Path,
        batch_size: int,
        num_workers: int,
        underscores: str = "space",
        expected_samples: int | list[int] | None = None,
    ) -> None:
        classes = class_names(
            classnames, source.classes, underscores, labels_are_sorted_names=source.labels_are_sorted_names
        )
        self.title = title
        self.source = source
        self.classnames = classes.names
        self.prompted = classes.prompted
        self.templates = texts_of(templates, "templates")
        self.label_vectors = checked_vectors(source, title, len(classes.names))
        self.batch_size = batch_size
        self.num_workers = num_workers
        if samples := samples_note(title, len(source), expected_samples):
            self.notes = {"samples": samples}
        notice_once(*(f"{title}: {line}" for line in classes.notices))

    def headline(self, metrics: dict[str, float]) -> str:
        incomplete = f", {self.notes['samples']} samples" if "samples" in self.notes else ""
        chance = f"(chance {metrics['chance']:.1f} %)"
        return f"{self.title}: mAP {metrics[self.headline_metric]:.1f} % {chance}{incomplete}"

    def run(self, bundle: Bundle) -> dict[str, float]:
        bundle.need_tokenizer()
        classes = ensemble(template_features(lambda texts: text_features(bundle, texts), self.prompted, self.templates))
        cosines = self.cosines(bundle, classes)
        of_class = average_precisions(cosines, self.label_vectors)
        occurs = ~np.isnan(of_class)
        if not occurs.all():
            self.notes = {**self.notes, "classes with samples": f"{int(occurs.sum())} of {len(occurs)}"}
        self.arrays = {
            "classnames": np.array(self.classnames),
            "templates": np.array(self.templates),
            "label_vectors": self.label_vectors,
            "cosines": cosines,
            "average_precisions": of_class,
        }
        eleven_point = average_precisions(cosines, self.label_vectors, eleven_point_average_precision)
        return {
            "mean_average_precision": mean_average_precision(of_class),
            "mean_average_precision_11_point": mean_average_precision(eleven_point),
            "chance": 100 * float(self.label_vectors.mean(axis=0)[occurs].mean()),
            "num_samples": float(len(cosines)),
        }

    def cosines(self, bundle: Bundle, classes: Float[Tensor, "classes embed"]) -> Float[np.ndarray, "images classes"]:
        """Return the cosine similarity of all images with all classes."""
        features, _ = joint_features(
            bundle, self.source, batch_size=self.batch_size, num_workers=self.num_workers, labels=False
        )
        with evaluating(bundle.model, bundle.device):
            return torch.cat([images @ classes.T for images in features.split(self.batch_size)]).cpu().numpy()


def checked_vectors(source: Source, title: str, num_classes: int) -> np.ndarray:
    """Return a source's label vectors.

    Raises:
        UserError: it has none, they are of another number of classes, or no image shows any class.
    """
    vectors = source.label_vectors
    if vectors is None:
        raise UserError(f"{title}: the source has one label per image; expected label vectors, or evaluate by ZeroShot")
    if vectors.shape != (len(source), num_classes):
        raise UserError(
            f"{title}: label vectors of {vectors.shape[1]} classes for {len(vectors)} images; expected {num_classes} "
            f"classes, one per name, and {len(source)} images"
        )
    if not vectors.any():
        raise UserError(f"{title}: no image shows any of the {num_classes} classes: check the source's label vectors")
    return vectors
