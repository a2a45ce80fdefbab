"""Zero-shot classifier: rank text labels by how well they fit an image."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

from openslip.distributed import notice_once
from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.inference.images import ImageLike, is_one_image, listed
from openslip.inference.prompts import class_embeddings, repeated, texts

Ranking = list[tuple[str, float]]


class ZeroShotClassifier:
    """Ranks labels for images by exp(logit_scale) x cosine. Radford et al. 2021, arXiv:2103.00020, section 3.1.2.

    Args:
        bundle: the bundle that `openslip.load` returned.
        labels: candidate labels, each a word or a phrase.
        templates: prompts with `{}` for the label; the unit-length features of a label's prompts are averaged and
            normalised again.
        probabilities: `softmax` or `sigmoid`. With `softmax`, the probabilities of an image's labels sum to 1. With
            `sigmoid`, each label is judged by itself, and the model must have a `logit_bias`, which is added to the
            logits: Zhai et al. 2023, arXiv:2303.15343.

    Raises:
        UserError: one string was given instead of a list, labels or templates are invalid, or `sigmoid` was chosen
            for a model without a `logit_bias`.
    """

    def __init__(
        self,
        bundle: Bundle,
        labels: Iterable[str | int],
        templates: Iterable[str | int] = ("a photo of a {}.",),
        probabilities: str = "softmax",
    ) -> None:
        if probabilities not in ("softmax", "sigmoid"):
            raise UserError(f"probabilities={probabilities}: expected softmax or sigmoid")
        self.bundle = bundle
        self.labels = texts(labels, "labels")
        self.bias = bundle.bias() if probabilities == "sigmoid" else None
        bundle.need_tokenizer()
        self.scale = bundle.scale()
        self.classes = class_embeddings(bundle.encode_text, self.labels, templates)  # encoded once for all calls
        if len(self.labels) == 1 and self.bias is None:
            notice_once(f"labels: {self.labels[0]!r} is the only one, so its probability is always 1: give several")
        if twice := repeated(self.labels):
            notice_once(f"labels: {', '.join(twice)} given several times: they share the probability")

    def __call__(self, images: ImageLike | Iterable[ImageLike]) -> Ranking | list[Ranking]:
        """Rank the labels for one image, or for each image of a list.

        Args:
            images: an image or a list of images. An image is a path, encoded image bytes, a PIL image, a uint8 array
                [height, width, 3], or a tensor [3, height, width] of uint8 or of floats from 0 to 1.

        Returns:
            A ranking: pairs of label and probability, most probable first. For a list of images, a list of rankings.
        """
        return self.rank([images])[0] if is_one_image(images) else self.rank(images)  # pyright: ignore

    def rank(self, images: Iterable[ImageLike]) -> list[Ranking]:
        """Return one ranking per image."""
        given = listed(images)
        return self.rank_features(self.bundle.encode_image(given)) if given else []

    def rank_features(self, features: Float[Tensor, "images embed"]) -> list[Ranking]:
        """Return one ranking per image, computed from unit-length image features."""
        logits = self.scale * features @ self.classes.T
        probabilities = logits.softmax(dim=-1) if self.bias is None else (logits + self.bias).sigmoid()
        sorted_probabilities, places = probabilities.sort(dim=-1, descending=True, stable=True)
        return [
            [(self.labels[place], p) for place, p in zip(order, row, strict=True)]
            for row, order in zip(sorted_probabilities.tolist(), places.tolist(), strict=True)
        ]
