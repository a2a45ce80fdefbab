"""Frozen features of labelled images, for classifiers that are fitted on some images and tested on others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.image_features import ImageFeatures, raw_joint_features, raw_tower_features
from openslip.inference.bundle import Bundle

FEATURES = {"tower": raw_tower_features, "joint": raw_joint_features}


def check_features(name: str, features: str) -> None:
    """Refuse a value of the argument `features` that is neither `tower` nor `joint`."""
    if features not in FEATURES:
        raise UserError(
            f"features={features}: {name} expected tower (before the projection) or joint (the space of the texts)"
        )


def frozen_features(
    bundle: Bundle, source: Source, *, features: str, normalise: bool, batch_size: int, num_workers: int
) -> ImageFeatures:
    """Return the features of a source's images and their labels; all ranks get all rows.

    Args:
        bundle: model and image transform.
        source: labelled images.
        features: `tower` for the image tower's features, before any projection, or `joint` for projected features.
        normalise: whether rows are scaled to unit length.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: a sample has no label, its image cannot be read, or the model has no tower of ours.
        NonFiniteError: the model's features are not finite.
    """
    rows, labels = FEATURES[features](bundle, source, batch_size=batch_size, num_workers=num_workers)
    unit = torch.cat([bundle.unit(batch, "image") for batch in rows.split(batch_size)])  # refuses what is not finite
    return ImageFeatures(unit if normalise else rows, labels)


class Classes(NamedTuple):
    """The labels that occur among training images, in ascending order, and each training image's place in them."""

    labels: Int64[Tensor, " classes"]
    places: Int64[Tensor, " train"]

    def places_of(self, labels: Int64[Tensor, " images"]) -> Int64[Tensor, " images"]:
        """Return each label's place among the classes; -1 for a label that no training image has."""
        places = torch.searchsorted(self.labels, labels).clamp(max=len(self.labels) - 1)
        return torch.where(self.labels[places] == labels, places, -1)


def classes_of(labels: Int64[Tensor, " train"]) -> Classes:
    """Number the labels that occur, which may be any numbers."""
    return Classes(*labels.unique(return_inverse=True))


def refuse_other_classes(name: str, train: Source, other: Source, role: str) -> None:
    """Refuse two sources whose class names differ, because equal labels would mean different classes.

    Args:
        name: the evaluation, for the error message.
        train: labelled images to fit on.
        other: labelled images to test on.
        role: what `other` is, such as `test`.
    """
    if train.classes and other.classes and list(train.classes) != list(other.classes):
        differing = sorted(set(train.classes) ^ set(other.classes)) or list(other.classes)
        raise UserError(
            f"{name}: train and {role} have different classes ({len(train.classes)} and {len(other.classes)}; "
            f"{differing[0]} is not in both), so that their labels do not match: give both the same class folders"
        )


def known_places(name: str, classes: Classes, labels: Int64[Tensor, " images"], role: str) -> Int64[Tensor, " images"]:
    """Return each label's place among the classes; refuse a label that no training image has.

    Args:
        name: the evaluation, for the error message.
        classes: classes of the training images.
        labels: labels of other images.
        role: what these images are, such as `test`.
    """
    places = classes.places_of(labels)
    if len(unknown := labels[places < 0].unique()):
        raise UserError(
            f"{name}: no training image has label {int(unknown[0])}, which {role} images have "
            f"({len(unknown)} such labels in all): give train images of every class"
        )
    return places


def split_rows(num_rows: int, share: float, seed: int) -> tuple[Int64[Tensor, " first"], Int64[Tensor, " second"]]:
    """Split row indices at random into two parts, each in ascending order; the second holds the given share of them.

    Args:
        num_rows: number of rows, at least 2.
        share: share of the second part, between 0 and 1; each part has at least one row.
        seed: seed of the permutation.
    """
    order = np.random.default_rng(seed).permutation(num_rows)
    num_first = num_rows - min(max(round(share * num_rows), 1), num_rows - 1)
    return torch.from_numpy(np.sort(order[:num_first])), torch.from_numpy(np.sort(order[num_first:]))


def class_name(source: Source, label: int) -> str:
    """Return how errors name a class: the source's own name of it, or its number."""
    classes: Sequence[str] | None = source.classes
    return f"class {classes[label]!r}" if classes and label < len(classes) else f"label {label}"


def predictions_of(
    source: Source, labels: Int64[np.ndarray, " images"], predictions: Int64[np.ndarray, " images"]
) -> dict[str, np.ndarray]:
    """Return the arrays of a classification for the report, with the source's names of its classes if it has names.

    Args:
        source: the test images.
        labels: true label of each image.
        predictions: predicted label of each image.
    """
    names = {} if source.classes is None else {"classnames": np.array(list(source.classes))}
    return {"labels": labels, "predictions": predictions, **names}
