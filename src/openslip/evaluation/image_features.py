"""Features of all images of a source, computed in one pass that evaluations of the same source share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.feature_cache import FeatureCache
from openslip.evaluation.features import gather_batches, image_batches
from openslip.inference.bundle import Bundle, evaluating

_cache: FeatureCache | None = None


class ImageFeatures(NamedTuple):
    """Unit-length features of a source's images in its order, and their labels, -1 for an image without one."""

    features: Float[Tensor, "images width"]
    labels: Int64[Tensor, " images"]


@contextmanager
def sharing(cache: FeatureCache) -> Iterator[None]:
    """Inside this context, evaluations share the features of equal model, transform, source and batch size."""
    global _cache
    before, _cache = _cache, cache
    try:
        yield
    finally:
        _cache = before


def joint_features(
    bundle: Bundle, source: Source, *, batch_size: int, num_workers: int, labels: bool = True
) -> ImageFeatures:
    """Return the unit-length features of images in the joint space of images and texts.

    All ranks must call this, and all get all rows, identical to those of one process.

    Args:
        bundle: model and image transform.
        source: images.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.
        labels: whether a sample without a label is an error.

    Raises:
        UserError: a sample has no label, or its image cannot be read.
        NonFiniteError: the model's features are not finite.
    """
    rows, of_image = raw_joint_features(bundle, source, batch_size=batch_size, num_workers=num_workers, labels=labels)
    return ImageFeatures(torch.cat([bundle.unit(batch, "image") for batch in rows.split(batch_size)]), of_image)


def raw_joint_features(
    bundle: Bundle, source: Source, *, batch_size: int, num_workers: int, labels: bool = True
) -> ImageFeatures:
    """Return what `joint_features` does, at the length that the projection gives."""
    has_tower = hasattr(bundle.model, "project_image")  # another library's model only has `encode_image`
    rows, of_image = outputs(bundle, source, batch_size, num_workers, labels=labels, tower=has_tower)
    if not has_tower:
        return ImageFeatures(rows, of_image)
    with evaluating(bundle.model, bundle.device):
        # In the batches of the pass, because the last bits of a product may depend on the number of its rows.
        joint = [bundle.model.project_image(batch) for batch in rows.split(batch_size)]
        return ImageFeatures(torch.cat(joint), of_image)


def tower_features(
    bundle: Bundle, source: Source, *, batch_size: int, num_workers: int, labels: bool = True
) -> ImageFeatures:
    """Return unit-length features of images before any projection; `joint_features` returns projected ones.

    Raises:
        UserError: the model is another library's, which only gives projected features; or as in `joint_features`.
        NonFiniteError: the model's features are not finite.
    """
    rows, of_image = raw_tower_features(bundle, source, batch_size=batch_size, num_workers=num_workers, labels=labels)
    return ImageFeatures(torch.cat([bundle.unit(batch, "image") for batch in rows.split(batch_size)]), of_image)


def raw_tower_features(
    bundle: Bundle, source: Source, *, batch_size: int, num_workers: int, labels: bool = True
) -> ImageFeatures:
    """Return what `tower_features` does, at the length that the image tower gives."""
    if not hasattr(bundle.model, "image_tower"):
        raise UserError(
            f"{bundle.name()}: features before the projection need a model of ours, and {type(bundle.model).__name__} "
            "only gives projected ones: convert the model to a format that openslip reads itself (docs/WEIGHTS.md)"
        )
    return outputs(bundle, source, batch_size, num_workers, labels=labels, tower=True)


def outputs(
    bundle: Bundle, source: Source, batch_size: int, num_workers: int, *, labels: bool, tower: bool
) -> ImageFeatures:
    """Return the outputs of the image tower, or of `encode_image`, from the cache or from a pass over the images."""
    known = None if _cache is None else _cache.get(bundle, source.fingerprint, batch_size)
    if known is None:
        encode = bundle.model.image_tower if tower else bundle.model.encode_image
        encoded, of_image = [], []
        with evaluating(bundle.model, bundle.device):
            batches = image_batches(bundle, source, batch_size=batch_size, num_workers=num_workers, labels=labels)
            for image, label in batches:
                try:
                    encoded.append(encode(image))
                    of_image.append(label.to(bundle.device, non_blocking=True))
                except Exception as error:
                    batches.throw(error)  # on every rank
            features, all_labels = (
                gather_batches(rows, len(source), batch_size, bundle.device) for rows in (encoded, of_image)
            )
        known = features, all_labels
        if _cache is not None:
            _cache.put(bundle, source.fingerprint, batch_size, known)
    features, all_labels = (rows.to(bundle.device) for rows in known)
    if labels and (missing := (all_labels < 0).nonzero()).numel():
        raise UserError(f"sample {source[int(missing[0])].key!r} has no label, which this evaluation needs")
    return ImageFeatures(features, all_labels)
