"""Ask a model which label fits an image."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from openslip.errors import UserError
from openslip.inference.bundle import Bundle, ImageLike
from openslip.inference.prompts import class_embeddings

Ranking = list[tuple[str, float]]


class ZeroShotClassifier:
    """Ranks labels by softmax(exp(logit_scale) x cosine). Radford et al. 2021, arXiv:2103.00020, section 3.1.2.

    Args:
        bundle: from `openslip.load`.
        labels: candidates, one word or more each.
        templates: prompts with `{}` for the label; their features are averaged.
    """

    def __init__(self, bundle: Bundle, labels: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)) -> None:
        if not labels:
            raise UserError('labels is empty: give at least one, e.g. --labels "man kicking,man sleeping"')
        self.bundle = bundle
        self.labels = list(labels)
        self.classes = class_embeddings(bundle.encode_text, self.labels, templates)  # once: images come one by one

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Ranking | list[Ranking]:
        """Labels with probabilities, best first; a list of them for a list of images."""
        if isinstance(images, (str, Path, bytes, Image.Image)):
            return self.rank([images])[0]
        return self.rank(images)

    def rank(self, images: Sequence[ImageLike]) -> list[Ranking]:
        """One ranking per image."""
        if not images:
            return []
        logits = self.bundle.model.logit_scale.detach().exp() * self.bundle.encode_image(images) @ self.classes.T
        probabilities, places = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        return [
            [(self.labels[place], p) for place, p in zip(order, row, strict=True)]
            for row, order in zip(probabilities.tolist(), places.tolist(), strict=True)
        ]
